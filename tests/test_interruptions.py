"""The bring-up cut off anywhere: the next run goes on, and the one after that changes nothing.

By `make faults`: it takes half an hour, most of it kubeadm's own patience with half-joined members.
In order; it leaves the whole target built. Begun without machines (as make does), it cuts off everything.
"""

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from lab import provider
from lab.lock import live_owner
from lab.paths import Paths
from provisioning.kubeadm import MARKER
from provisioning.poll import poll
from tests.live_lab import ROOT, api, build, in_lab
from tests.processes import children

pytestmark = [pytest.mark.lab, pytest.mark.faults]
# Where a run is cut off; each in turn by Ctrl-C and by kill -9.
ACTIONS = (
    "template",
    "machines cloned",
    "machines shaped",
    "machines running",
    "machines entered",
    "machines prepared",
    "NDB cluster started",
    "database and its user",
    "first control plane",
    "Kubernetes API",
    "pod network",
    "strictARP",
    "kubelet settings",
    "control planes joined",
    "workers joined",
    "worker labels",
    "cluster DNS spread",
    "MetalLB",
    "MetalLB pool",
    "cluster ready",
    "site declared",
    "site running",
    "site installed",
    "administration guarded",
    "tunnel declared",
    "connector running",
    "public host answers",
)


@pytest.fixture(scope="module", autouse=True)
def _lab() -> None:
    """The lab is up; these tests share it, in order."""
    # A shell's background job ignores Ctrl-C, and so would the runs that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    provider.up(Paths.default())


def cut_off(action: str, number: signal.Signals) -> tuple[int, str]:
    """Start a run, send it a signal as soon as it is at `action`, and return its end and what it said."""
    command = [sys.executable, "-m", "provisioning", "--env", "lab"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr
        heard = []
        for line in process.stderr:
            heard.append(line)
            if line.strip() == f"… {action}":
                # Somewhere in the action, or after it: another moment each time, the same one in every run.
                with suppress(subprocess.TimeoutExpired):
                    process.wait(random.Random(f"{action} {number}").uniform(0, 4))
                # As a terminal does it: the whole group hears of Ctrl-C; a kill reaches the one process only.
                if process.poll() is None:
                    (os.killpg if number is signal.SIGINT else os.kill)(process.pid, number)
                break
        heard += list(process.stderr)
        return process.wait(), "".join(heard)


def test_every_action_is_cut_off() -> None:
    planned = build("lab", "--plan").stderr
    assert tuple(re.findall(r"^… (.*)$", planned, re.MULTILINE)) == ACTIONS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_run_cut_off_at_any_action_ends_at_once(action: str, number: signal.Signals) -> None:
    code, heard = cut_off(action, number)
    assert "building stopped at" not in heard, heard
    # Near the end of the list a run may come to its own end before it is cut off, or be cut off as it exits.
    ended = re.search(r"^\d+ changed$", heard, re.MULTILINE) is not None
    assert code in ({0, -number} if ended else {130 if number is signal.SIGINT else -number}), heard
    assert "Traceback" not in heard
    # The next parameter's run starts where this one ended; the last test shows where that leads.


def test_the_next_run_converges_and_the_one_after_changes_nothing() -> None:
    first = build()
    assert first.returncode == 0, first.stderr
    second = build()
    assert second.returncode == 0, second.stderr
    assert re.search(r"^0 changed$", second.stderr, re.MULTILINE), second.stderr


def _remove_worker() -> None:
    """Take the third worker out of the cluster and off the hypervisor, so that a run has to make it anew."""
    in_lab(_cut_power)
    kubectl = [sys.executable, "-m", "lab", "kubectl", "delete", "node", "srvk8s-worker03"]
    subprocess.run(kubectl, cwd=ROOT, check=True, timeout=60, capture_output=True)
    in_lab(_delete_worker)


def run_until(action: str, then: Callable[[], object]) -> tuple[int, str]:
    """A whole run, with something done when it comes to `action`; returns its end and what it said."""
    command = [sys.executable, "-m", "provisioning", "--env", "lab"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        heard = []
        for line in process.stderr:
            heard.append(line)
            if line.strip() == f"… {action}":
                then()
    return process.returncode, "".join(heard)


def _kill_mirror() -> None:
    """End the daemon's child that serves packages; the daemon starts another."""
    owner = live_owner(Paths.default())
    assert owner
    (mirror,) = [pid for pid in children(owner.pid) if b"lab.mirror" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(mirror, signal.SIGKILL)


def test_a_mirror_that_dies_during_a_build_costs_a_second_run_at_most() -> None:
    _remove_worker()
    code, heard = run_until("machines prepared", _kill_mirror)
    assert code == 0 or "stopped at “machines prepared”" in heard, heard
    done = build()
    assert done.returncode == 0, done.stderr


def test_a_node_that_dies_while_it_joins_is_named_and_the_next_run_goes_on() -> None:
    _remove_worker()
    code, heard = run_until("workers joined", lambda: in_lab(_cut_power_at_work))
    assert code == 1, heard
    assert "stopped at “workers joined”" in heard
    assert "machine: srvk8s-worker03" in heard
    done = build()
    assert done.returncode == 0, done.stderr


def _cut_power() -> object:
    return api().nodes("pve").qemu(123).status.stop.post()


def _delete_worker() -> str:
    worker = api().nodes("pve").qemu(123)
    poll("worker off", lambda: worker.status.current.get()["status"] == "stopped", timeout_s=30)
    worker.delete()
    here = api().nodes("pve").qemu
    return str(poll("worker gone", lambda: 123 not in {row["vmid"] for row in here.get()}, timeout_s=30))


def _cut_power_at_work() -> str:
    """Wait until kubeadm has begun on the third worker, then cut its power."""
    root = Paths.default().run / "roots" / "123"
    owner = live_owner(Paths.default())
    assert owner
    marker = Path(f"/proc/{owner.pid}/root{root}{MARKER}")
    poll("kubeadm at work", marker.exists, timeout_s=120, interval_s=0.05)
    return str(_cut_power())


def test_a_target_is_judged_without_anything_that_building_it_left_behind(tmp_path: Path) -> None:
    """As on another person's machine, or for a target that was built by hand."""
    command = [sys.executable, "-m", "pytest", "--no-build", "-q", "-m", "acceptance"]
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ passed", done.stdout)
    assert "failed" not in done.stdout
