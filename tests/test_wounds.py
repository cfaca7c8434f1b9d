"""A drill that is killed at any moment leaves nothing broken: its target is whole again before anybody looks.

Thirty times by `make faults`; `make test` kills two, one before its blow and one after. Where its healer dies with it,
whoever comes next heals, or the machines themselves do. Late among the tests: who enters the lab's network stays there.
"""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.drill import EXPIRES_AFTER_S
from chaos.drills import DRILLS as CATALOGUE
from chaos.facts import Live
from chaos.fault import KINDS
from chaos.journal import Journal
from chaos.ledger import PREFIX, TABLE_PREFIX
from provisioning.poll import NotYet, poll
from provisioning.session import Session
from tests.live_lab import ROOT
from tests.processes import children

pytestmark = pytest.mark.lab
# One of each way to break and to heal: the hypervisor's, a script's with its timer, two machines at once, a cable.
DRILLS = ("data-node-power", "kubelet-stopped", "data-node-partition", "announcer-network", "connector-power")
ON_MACHINES = ("kubelet-stopped", "data-node-partition")  # what expires there
LIFE_MAX_S = 45.0  # by then the slowest of them has healed by itself
BRIEF = (1, 9)  # of the thirty: one that lives for 10 s and breaks nothing yet, one for 24 s and does
STRUCK_TIMEOUT_S = 90
WHOLE_TIMEOUT_S = 180


@pytest.fixture(scope="module")
def target(lab_target: Session) -> Session:
    """The lab's, built and whole."""
    await_whole(lab_target)
    return lab_target


def await_whole(session: Session) -> None:
    """Within the time that a killed drill's target may take; nothing is noted as broken then."""
    live = Live(session, session.cluster)

    def whole() -> bool:
        if held := Journal(session.state.broken).held():
            raise NotYet(f"still noted: {held}")
        return live.whole()

    poll("a whole target", whole, timeout_s=WHOLE_TIMEOUT_S, interval_s=2)


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=() if number in BRIEF else pytest.mark.faults) for number in range(30)]
)
def test_a_drill_killed_at_any_moment_leaves_nothing_broken(number: int, target: Session, tmp_path: Path) -> None:
    dice = random.Random(number)
    name, life_s = DRILLS[number % len(DRILLS)], dice.uniform(5.0, LIFE_MAX_S)
    runner = begun(name, number, tmp_path)
    try:
        runner.wait(life_s)
    except subprocess.TimeoutExpired:
        os.kill(runner.pid, signal.SIGKILL)
        runner.wait()
    assert runner.returncode in (-signal.SIGKILL, 0, 1), (tmp_path / "said").read_text()
    await_whole(target)
    ended(tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("name", DRILLS)
def test_a_drill_killed_with_its_healer_is_healed_by_command(name: str, target: Session, tmp_path: Path) -> None:
    killed_when_struck(begun(name, 1, tmp_path), target)
    assert Journal(target.state.broken).held()
    done = heal()
    assert done.returncode == 0, done.stderr
    assert "healed: " in done.stdout
    await_whole(target)
    ended(tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("name", ON_MACHINES)
def test_what_is_done_on_a_machine_expires_where_nobody_is_left(name: str, target: Session, tmp_path: Path) -> None:
    """Neither drill nor healer, and nobody who asks for it: the machine's own timer mends it."""
    killed_when_struck(begun(name, 1, tmp_path), target)
    wounds = Journal(target.state.broken).held()
    assert remaining(target), "it was healed before anybody could be missed"

    def expired() -> bool:
        if left := remaining(target):
            raise NotYet("; ".join(left))
        return True

    timeout_s = CATALOGUE[name].hold_s + EXPIRES_AFTER_S + 30
    poll("what was broken to mend itself", expired, timeout_s=timeout_s, interval_s=2)
    assert Journal(target.state.broken).held() == wounds, "somebody else healed it"
    assert heal().returncode == 0
    await_whole(target)
    ended(tmp_path)


def begun(name: str, seed: int, folder: Path) -> "subprocess.Popen[bytes]":
    """A drill in a process of its own; what it says is in the folder."""
    options = ["--chaos", "lab", "--seed", str(seed), "--out", str(folder)]
    command = [sys.executable, "-m", "chaos", "run", name, *options]
    with (folder / "said").open("w") as said:
        return subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)


def killed_when_struck(runner: "subprocess.Popen[bytes]", target: Session) -> None:
    """Kill the drill and its healer once something is broken: the healer first, so that it misses nothing."""

    def struck() -> bool:
        assert runner.poll() is None, "the drill ended before it broke anything"
        return bool(remaining(target))

    try:
        poll("something broken", struck, timeout_s=STRUCK_TIMEOUT_S, interval_s=0.5)
        for pid in healers(runner.pid):
            os.kill(pid, signal.SIGKILL)
    finally:
        runner.kill()
        runner.wait()


def healers(runner: int) -> list[int]:
    """The processes that watch over a drill: those of its children that were started to."""
    found = [pid for pid in children(runner) if b"chaos.healer" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(found) == 1, f"expected one healer, found {found}"
    return found


def remaining(target: Session) -> list[str]:
    """What of that which is noted is truly broken, a line each."""
    by_id = {machine.vmid: machine for machine in target.environment.machines}
    held = Journal(target.state.broken).held()
    return [told for wound in held if (told := KINDS[wound.fault].remains(target, by_id[wound.vmid]))]


def heal() -> "subprocess.CompletedProcess[str]":
    """As a person would who comes next."""
    command = [sys.executable, "-m", "chaos", "heal"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def ended(folder: Path) -> None:
    """Nobody asks or writes any more."""
    files = [*folder.rglob("probes.jsonl"), *folder.rglob("writes.jsonl")]
    last = dict.fromkeys(files, -1)

    def silent() -> bool:
        before = dict(last)
        last.update({file: file.stat().st_size for file in files})
        return before == last

    poll("probes and workload to end", silent, timeout_s=30, interval_s=2)


@pytest.mark.faults
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
