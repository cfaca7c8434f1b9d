"""Lies of the suite itself: what asks, what heals and what writes down, told in its own processes."""

from certificate.verdict import Verdict
from tests.sabotage.lie import Lie, nothing

LAYER = "chaos"
FALSE = "tests.sabotage.false"
LIES = (
    Lie(
        "a-probe-that-reads-a-cached-page",
        LAYER,
        ("P5",),
        "to be away until the heal, and it was back before",
        nothing,
        scenarios=("The SQL node loses its power",),
        plugin=f"{FALSE}.cached_page",
    ),
    Lie(
        "a-heal-that-does-nothing",
        LAYER,
        ("P3",),
        "NOT healed",
        nothing,
        scenarios=("A worker's kubelet stops",),
        plugin=f"{FALSE}.idle_heal",
        verdict=Verdict.UNKNOWN,
    ),
    Lie(
        "a-ledger-that-acknowledges-before-the-write",
        LAYER,
        ("P5",),
        "lost",
        nothing,
        scenarios=("The SQL node loses its power",),
        plugin=f"{FALSE}.hasty_ledger",
    ),
)
