"""A drill that is killed at any moment leaves nothing broken: its target is whole again before anybody looks.

Thirty times by `make faults`; `make test` kills two. Late among the tests: who enters the lab's network stays there.
"""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.facts import WHOLE, Live
from chaos.journal import Journal
from chaos.ledger import PREFIX, TABLE_PREFIX
from provisioning.poll import NotYet, poll
from provisioning.session import Session, open_session
from tests.live_lab import ROOT, build

pytestmark = pytest.mark.lab
# One of each way to break and to heal: the hypervisor's, a script's with its timer, two machines at once, a cable.
DRILLS = ("data-node-power", "kubelet-stopped", "data-node-partition", "announcer-network", "connector-power")
LIFE_MAX_S = 45.0  # by then the slowest of them has healed by itself
WHOLE_TIMEOUT_S = 180


@pytest.fixture(scope="module")
def target() -> Session:
    """The lab's, built and whole."""
    done = build()
    assert done.returncode == 0, done.stderr
    session = open_session("lab")
    await_whole(session)
    return session


def await_whole(session: Session) -> None:
    """Within the time that a killed drill's target may take; nothing is noted as broken then."""
    live = Live(session, session.cluster)

    def whole() -> bool:
        if held := Journal(session.state.broken).held():
            raise NotYet(f"still noted: {held}")
        if found := {name: state for name, state in live.states().items() if state != WHOLE}:
            raise NotYet(str(found))
        return True

    poll("a whole target", whole, timeout_s=WHOLE_TIMEOUT_S, interval_s=2)


@pytest.mark.parametrize(
    "number", [*range(2), *(pytest.param(number, marks=pytest.mark.faults) for number in range(2, 30))]
)
def test_a_drill_killed_at_any_moment_leaves_nothing_broken(number: int, target: Session, tmp_path: Path) -> None:
    dice = random.Random(number)
    name, life_s = DRILLS[number % len(DRILLS)], dice.uniform(5.0, LIFE_MAX_S)
    options = ["--chaos", "lab", "--seed", str(number), "--out", str(tmp_path)]
    command = [sys.executable, "-m", "chaos", "run", name, *options]
    with (tmp_path / "said").open("w") as said:
        runner = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
    try:
        runner.wait(life_s)
    except subprocess.TimeoutExpired:
        os.kill(runner.pid, signal.SIGKILL)
        runner.wait()
    assert runner.returncode in (-signal.SIGKILL, 0, 1), (tmp_path / "said").read_text()
    await_whole(target)
    ended(tmp_path)


def ended(folder: Path) -> None:
    """Nobody asks or writes any more."""
    files = [*folder.rglob("probes.jsonl"), *folder.rglob("writes.jsonl")]
    last = dict.fromkeys(files, -1)

    def silent() -> bool:
        before = dict(last)
        last.update({file: file.stat().st_size for file in files})
        return before == last

    poll("probes and workload to end", silent, timeout_s=30, interval_s=2)


def test_what_killed_drills_wrote_is_cleared_by_the_next(target: Session) -> None:
    """A drill sweeps before it begins; so does the healer, where one died."""
    command = [sys.executable, "-m", "chaos", "run", "replica-deleted", "--chaos", "lab", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, 1), done.stderr
    schema = target.environment.wordpress.database
    tables = target.database.query(f"SHOW TABLES FROM {schema} LIKE '{TABLE_PREFIX}%'")
    posts = target.database.query(f"SELECT COUNT(*) FROM {schema}.wp_posts WHERE post_title LIKE '{PREFIX}%'")
    assert tables == []
    assert posts == [("0",)]
