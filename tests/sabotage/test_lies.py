"""Each lie is told to a built lab, caught by the promises that it breaks and by no other, and taken back."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

import pytest

from certificate.verdict import Finding, Verdict
from tests.sabotage.catalogue import LIES
from tests.sabotage.features import every_scenario
from tests.sabotage.lie import Lie
from tests.sabotage.matrix import Row, bystanders, owing, sample
from tests.sabotage.stage import Stage

BYSTANDERS = 2
SCENARIOS = every_scenario()

pytestmark = [pytest.mark.lab, pytest.mark.sabotage]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a lie; with --lies N, so many of those that are noticed while nothing is disrupted, picked by --seed."""
    if "lie" not in metafunc.fixturenames:
        return
    wanted = metafunc.config.getoption("--lies", default=None)
    lies = LIES if wanted is None else sample(LIES, SCENARIOS, metafunc.config.option.seed, wanted)
    metafunc.parametrize("lie", lies, ids=lambda lie: lie.name)


def test_a_lie_is_caught(lie: Lie, stage: Stage, note: Callable[[Row], None], pytestconfig: pytest.Config) -> None:
    tags = {scenario.name: scenario.tags for scenario in SCENARIOS}
    asked = {*owing(lie, SCENARIOS), *bystanders(lie, SCENARIOS, pytestconfig.option.seed, BYSTANDERS)}
    found: Mapping[str, Finding] = {}
    trouble, began_s, judged_s = "", time.monotonic(), 0.0
    try:
        with ExitStack() as taken_back:
            if lie.rollback:
                taken_back.callback(stage.roll_back)
            taken_back.enter_context(lie.tell(stage))
            found = stage.judge(asked, lie.plugin)
            judged_s = time.monotonic() - began_s
    except Exception as error:  # noqa: BLE001 - whatever it was, the next lie is not told to a target that is not whole
        trouble = f"it could not be told or taken back: {type(error).__name__}: {error}"
    row = Row(lie, found, tags, judged_s, 0.0, trouble)
    left = ""
    try:
        stage.await_whole()
        # What noticed the lie must notice that it is over.
        still = {name: f for name, f in stage.judge(row.caught).items() if f.verdict is not Verdict.PROVEN}
        left = "; ".join(f"“{name}” still says {f.verdict}: {f.reason}" for name, f in still.items())
    except Exception as error:  # noqa: BLE001 - as above
        left = f"not whole again: {type(error).__name__}: {error}"
    trouble = "; ".join(part for part in (trouble, left) if part)
    row = Row(lie, found, tags, judged_s, time.monotonic() - began_s - judged_s, trouble)
    note(row)
    if left:
        recover(stage, lie)
    assert not row.complaint, row.complaint


def recover(stage: Stage, lie: Lie) -> None:
    """Put the target back to what was kept; ends the run where nothing was, or where that does not mend it either."""
    try:
        if stage.kept:
            stage.roll_back()
            return
        why = "it was not kept"
    except Exception as error:  # noqa: BLE001 - it ends the run with its reason
        why = f"{type(error).__name__}: {error}"
    pytest.exit(f"{lie.name} is not taken back, and nothing can be rolled back: {why}; build it anew", returncode=1)
