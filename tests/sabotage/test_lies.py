"""Each lie is told to a built lab, caught by the promises that it breaks and by no other, and taken back."""

import time
from collections.abc import Callable, Mapping

import pytest

from certificate.verdict import Finding, Verdict
from provisioning.action import ActionFailed
from provisioning.hypervisor import HypervisorError
from provisioning.poll import DeadlineExceeded
from tests.sabotage.catalogue import LIES
from tests.sabotage.features import every_scenario
from tests.sabotage.lie import Lie
from tests.sabotage.matrix import Row, bystanders, owing, sample
from tests.sabotage.stage import NotJudged, Stage

BYSTANDERS = 2
SCENARIOS = every_scenario()
TROUBLE = (ActionFailed, DeadlineExceeded, HypervisorError, NotJudged)

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
        with lie.tell(stage):
            found = stage.judge(asked, lie.plugin)
            judged_s = time.monotonic() - began_s
    except TROUBLE as error:
        trouble = f"it could not be told or taken back: {error}"
    row = Row(lie, found, tags, judged_s, 0.0, trouble)
    try:
        if lie.rollback:
            stage.roll_back()
        stage.await_whole()
        # What noticed the lie must notice that it is over.
        still = {name: f for name, f in stage.judge(row.caught).items() if f.verdict is not Verdict.PROVEN}
        trouble = trouble or "; ".join(f"“{name}” still says {f.verdict}: {f.reason}" for name, f in still.items())
    except TROUBLE as error:
        trouble = f"{trouble}; not whole again: {error}"
    row = Row(lie, found, tags, judged_s, time.monotonic() - began_s - judged_s, trouble)
    note(row)
    assert not row.complaint, row.complaint
