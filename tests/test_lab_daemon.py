"""The lab's daemon and its commands, with real guests, beside any lab that is up: needs Linux and root."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import leftovers, provider
from lab.guest import LxcDriver
from lab.home import Home
from lab.inventory import Inventory, Machine
from lab.lock import LabBusyError, Owner, live_owner
from lab.mirror import content
from lab.paths import Paths
from provisioning.poll import poll

pytestmark = pytest.mark.lab
FOLDER = Path(__file__).parent.parent


@dataclass(frozen=True)
class Lab:
    """A lab of its own: other directories, hence other cgroups and another network than the machine's."""

    paths: Paths
    content: Path

    @property
    def owner(self) -> Owner:
        owner = live_owner(self.paths)
        assert owner is not None
        return owner

    @property
    def variables(self) -> dict[str, str]:
        return {"HAPROOF_LAB_STATE": str(self.paths.state), "HAPROOF_LAB_RUN": str(self.paths.run)}

    def command(self, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "lab", *arguments],
            cwd=FOLDER,
            env=os.environ | self.variables,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self) -> "subprocess.Popen[bytes]":
        daemon = subprocess.Popen(
            [sys.executable, "-m", "lab", "serve", "--content", str(self.content)],
            cwd=FOLDER,
            env=os.environ | self.variables,
        )
        poll("the lab", lambda: daemon.poll() is None and self._is_ready(daemon.pid), timeout_s=60, interval_s=0.1)
        return daemon

    def _is_ready(self, pid: int) -> bool:
        owner = live_owner(self.paths)
        return owner is not None and owner.pid == pid and (self.paths.run / "ready").exists()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A lab with one machine that starts at boot; the daemon is not started."""
    paths = Paths(tmp_path / "state", Path(f"/run/haproof-daemon-{os.getpid()}"), tmp_path / "cache")
    made = content.build(print)
    named = os.environ.get("HAPROOF_TEST_IMAGE")
    image = Path(named) if named else next((made / "template").glob("*.raw"))
    LxcDriver(paths).create_disk(101, image)
    config: dict[str, int | float | str] = {
        "name": "alone",
        "memory": 512,
        "cores": 1,
        "onboot": 1,
        "net0": "virtio=02:00:00:00:00:21,bridge=vmbr1",
        "ipconfig0": "ip=172.31.0.21/24",
        "scsi0": "local-lvm:vm-101-disk-0,size=2G",
    }
    Inventory(paths.state / "qemu-server", "pve").add(Machine(101, config), "taken")
    lab = Lab(paths, made)
    try:
        yield lab
    finally:
        assert lab.command("down").returncode == 0
        assert not leftovers.inspect(paths)


def test_commands_pass_everything_through(lab: Lab) -> None:
    lab.start()
    done = lab.command("exec", "alone", "--", "sh", "-c", "cat; echo --no; echo err >&2; exit 7", stdin="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "in\n--no\n", "err\n")
    assert lab.command("exec", "101", "hostname").stdout == "alone\n"
    unknown = lab.command("exec", "nobody", "--", "true")
    assert unknown.returncode == 1
    assert "no machine nobody is running; running: alone" in unknown.stderr
    assert "no cluster yet" in lab.command("kubectl", "get", "nodes").stderr
    memory = lab.command("exec", "alone", "--", "grep", "MemTotal", "/proc/meminfo").stdout
    assert int(memory.split()[1]) == 512 * 1024


def test_status_snapshot_and_rollback(lab: Lab) -> None:
    assert lab.command("status").returncode == 1
    lab.start()
    assert "alone" in lab.command("status").stdout
    lab.command("exec", "alone", "--", "sh", "-c", "echo one > /srv/file")
    assert lab.command("snapshot", "first").returncode == 0
    lab.command("exec", "alone", "--", "sh", "-c", "echo two > /srv/file")
    assert "nothing was changed" in lab.command("rollback", "second").stderr
    done = lab.command("rollback", "first")
    assert done.returncode == 0, done.stderr
    assert lab.command("exec", "alone", "--", "cat", "/srv/file").stdout == "one\n"


def test_a_second_lab_is_refused_by_name(lab: Lab) -> None:
    lab.start()
    second = lab.command("serve", "--content", str(lab.content))
    assert second.returncode == 1
    assert f"process {lab.owner.pid} of {FOLDER}" in second.stderr


def test_another_checkouts_lab_is_used_on_request_only(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.start()
    assert provider.up(lab.paths) == lab.owner
    monkeypatch.setattr(provider, "FOLDER", Path("/elsewhere"))
    with pytest.raises(LabBusyError, match=f"process {lab.owner.pid} of {FOLDER}"):
        provider.up(lab.paths)
    assert provider.up(lab.paths, share=True) == lab.owner


def test_a_runner_brings_it_up_and_enters_its_network(lab: Lab) -> None:
    program = (
        "import socket; from lab import provider; provider.enter(); provider.enter(); "
        "print(len([socket.create_connection(('172.31.0.1', port), 5) for port in (80, 5000, 8006)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=FOLDER,
        env=os.environ | lab.variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


def test_what_a_killed_lab_left_is_cleared_by_the_next(lab: Lab) -> None:
    daemon = lab.start()
    before = leftovers.inspect(lab.paths)
    assert before.loop_devices
    daemon.kill()
    daemon.wait()
    left = leftovers.inspect(lab.paths)
    assert len(left.processes) >= 3
    lab.start()
    assert not set(left.processes) & set(leftovers.inspect(lab.paths).processes)
    assert lab.command("exec", "alone", "--", "true").returncode == 0


def test_down_clears_what_a_killed_lab_left(lab: Lab) -> None:
    daemon = lab.start()
    for pid in leftovers.inspect(lab.paths).processes:
        # Some end by themselves when others do; the guest's own are left over.
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/comm").read_text().strip() != "systemd":
                os.kill(pid, signal.SIGKILL)
    daemon.wait()
    assert lab.command("down").returncode == 0
    assert not leftovers.inspect(lab.paths)
    assert Home(lab.paths.state / "guests" / "101").disk.image.is_file()
    lab.command("down", "--delete")
    assert not (lab.paths.state / "guests").exists()


def test_a_helper_process_that_dies_is_started_again(lab: Lab) -> None:
    lab.start()

    def helpers() -> dict[str, int]:
        found: dict[str, int] = {}
        words: list[str] = []
        for pid in leftovers.inspect(lab.paths).processes:
            with suppress(FileNotFoundError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            for name in ("docker-registry", "lab.mirror", "lxcfs"):
                if name in words[:3]:
                    found[name] = pid
        return found

    before = helpers()
    assert set(before) == {"docker-registry", "lab.mirror", "lxcfs"}
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    poll(
        "new helpers",
        lambda: len(new := helpers()) == 3 and not set(new.values()) & set(before.values()),
        timeout_s=20,
        interval_s=0.2,
    )


def test_an_interrupt_ends_it_in_order(lab: Lab) -> None:
    daemon = lab.start()
    started = time.monotonic()
    daemon.send_signal(signal.SIGINT)
    assert daemon.wait(60) == 0
    assert time.monotonic() - started < 30
    assert not leftovers.inspect(lab.paths)
