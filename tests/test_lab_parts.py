"""The lab's decisions, without a lab: control groups, leftovers, kernel settings, lock, what a guest is given."""

import os
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest

from lab import leftovers, sysctl
from lab.boot import render_config, render_interfaces, render_preparation
from lab.cgroup import Cgroup, Hierarchy, parse_hierarchies
from lab.child import Child
from lab.driver import DriverError, GuestSpec, Nic
from lab.guest import LxcDriver
from lab.home import Home
from lab.lock import LabBusyError, Lock, is_held, live_owner, recorded_owner
from lab.paths import Paths
from lab.supervisor import ensure_ssh_key
from tests.processes import children

SPEC = GuestSpec(
    vmid=101,
    name="srvk8s-master01",
    cores=4,
    memory_mib=4096,
    cpu_units=400,
    nics=(
        Nic(0, "vmbr1", "02:00:00:00:00:01", IPv4Interface("172.31.0.21/24"), IPv4Address("172.31.0.1")),
        Nic(1, "vmbr2", "02:00:00:00:00:02"),
    ),
    authorized_keys=("ssh-ed25519 AAAA it's me",),
    nameserver="172.31.0.1",
)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "state", tmp_path / "haproof-unit-test", tmp_path / "cache")


def test_paths_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HAPROOF_LAB_RUN", raising=False)
    monkeypatch.setenv("HAPROOF_LAB_STATE", "/disk/lab")
    monkeypatch.setenv("XDG_CACHE_HOME", "/disk/cache")
    assert Paths.default() == Paths(Path("/disk/lab"), Path("/run/haproof-lab"), Path("/disk/cache/haproof"))


def test_hierarchies_of_v1_v2_and_both() -> None:
    text = (
        "proc /proc proc rw 0 0\n"
        "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0\n"
        "cgroup /sys/fs/cgroup/systemd cgroup rw,xattr,name=systemd 0 0\n"
        "cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0\n"
    )
    assert parse_hierarchies(text) == (
        Hierarchy(Path("/sys/fs/cgroup/cpu,cpuacct"), frozenset({"cpu", "cpuacct"})),
        Hierarchy(Path("/sys/fs/cgroup/systemd"), frozenset({"name=systemd"})),
        Hierarchy(Path("/sys/fs/cgroup/unified"), frozenset()),
    )


@pytest.mark.parametrize(("file", "alone", "eleven"), [("cpu.shares", "1024", "11264"), ("cpu.weight", "100", "1100")])
def test_a_group_counts_as_so_many(
    file: str, alone: str, eleven: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.cgroup.hierarchies", lambda: (Hierarchy(tmp_path, frozenset()),))
    group = Cgroup("haproof-x")
    group.weigh(200)  # without a share of its own there is nothing to weigh
    (tmp_path / group.name).mkdir()
    group.weigh(200)
    share = tmp_path / group.name / file
    share.write_text(alone)
    group.weigh(1100)
    assert share.read_text() == eleven


def test_a_group_that_goes_while_it_is_read_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a machine reboots: seen as FileNotFoundError out of a question for its status."""
    monkeypatch.setattr("lab.cgroup.hierarchies", lambda: (Hierarchy(tmp_path, frozenset()),))
    group = Cgroup("haproof-x")
    (tmp_path / group.name).mkdir()
    events = tmp_path / group.name / "cgroup.events"
    events.write_text("populated 1\nfrozen 1\n")
    assert group.is_frozen()
    monkeypatch.setattr(Cgroup, "find", lambda self, name: tmp_path / "gone" / name)
    assert group.read("cgroup.events") is None
    assert not group.is_frozen()


def test_mounts_below_are_innermost_first_and_only_those() -> None:
    text = (
        "22 1 0:1 / / rw - ext4 /dev/vda rw\n"
        "30 22 7:0 / /run/haproof-lab/roots/101 rw - ext4 /dev/loop0 rw\n"
        "31 30 0:3 / /run/haproof-lab/roots/101/a\\040b rw - tmpfs tmpfs rw\n"
        "32 22 0:4 / /run/haproof-lab-other rw - tmpfs tmpfs rw\n"
    )
    found = leftovers.mounts_below(text, (Path("/run/haproof-lab"),))
    assert found == ["/run/haproof-lab/roots/101/a b", "/run/haproof-lab/roots/101"]


def test_loop_devices_of_deleted_images_are_found_too() -> None:
    loops = {"loop0": "/var/lib/haproof-lab/guests/1/disk.raw (deleted)", "loop1": "/home/me/other.raw"}
    assert leftovers.backed_by(loops, (Path("/var/lib/haproof-lab"),)) == ["loop0"]


def test_nothing_is_found_of_a_lab_that_never_was(paths: Paths) -> None:
    assert not leftovers.inspect(paths)
    assert str(leftovers.clear(paths)) == "nothing"
    assert not Cgroup(paths.run.name).members()


@pytest.mark.parametrize(
    ("current", "cores", "changes"),
    [
        ({"fs/inotify/max_user_instances": 128}, 2, {"fs/inotify/max_user_instances": 8192}),
        ({"fs/inotify/max_user_instances": 9000}, 2, {}),
        ({"net/netfilter/nf_conntrack_max": 262144}, 2, {"net/netfilter/nf_conntrack_max": 131072}),
        ({"net/netfilter/nf_conntrack_max": 262144}, 8, {}),
        ({"kernel/panic": 0}, 2, {}),
        ({}, 2, {}),
    ],
)
def test_kernel_settings(current: dict[str, int], cores: int, changes: dict[str, int]) -> None:
    assert sysctl.wanted(current, cores) == changes


def test_lock_names_who_has_it_and_dies_with_its_process(paths: Paths, tmp_path: Path) -> None:
    lock = Lock(paths, tmp_path)
    lock.announce()
    owner = live_owner(paths)
    assert owner is not None
    assert (owner.pid, owner.folder) == (os.getpid(), str(tmp_path))
    with pytest.raises(LabBusyError, match=f"process {os.getpid()} of {tmp_path}"):
        Lock(paths, tmp_path)
    lock.release()
    assert live_owner(paths) is None

    program = (
        "import os, pathlib, signal; from lab.lock import Lock; from lab.paths import Paths; "
        f"p = pathlib.Path({str(paths.state)!r}); "
        f"Lock(Paths(p, pathlib.Path({str(paths.run)!r}), p), p).announce(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    assert not is_held(paths)
    dead = recorded_owner(paths)
    assert dead is not None
    lock = Lock(paths, tmp_path)
    assert lock.previous == dead
    assert live_owner(paths) is None, "a dead lab's name in a lock that another holds is no owner"
    lock.announce()
    assert live_owner(paths) == lock.owner


def test_interfaces_file_tells_addresses_and_leaves_the_cards_alone() -> None:
    text = render_interfaces(SPEC.nics)
    assert "iface ens18 inet static\n    address 172.31.0.21/24\n    gateway 172.31.0.1\n" in text
    assert "iface ens19 inet manual\n" in text
    assert "auto ens" not in text


@pytest.mark.parametrize("first_boot", [True, False])
def test_preparation_is_a_valid_script_that_quotes_what_it_is_given(first_boot: bool) -> None:
    script = render_preparation(SPEC, first_boot=first_boot)
    subprocess.run(["/bin/sh", "-n"], input=script, text=True, check=True)
    assert """'ssh-ed25519 AAAA it'"'"'s me\n'""" in script
    assert ("ssh_host_" in script) is first_boot


def test_config_holds_limits_cards_and_nothing_dropped(tmp_path: Path) -> None:
    text = render_config(SPEC, Home(tmp_path), tmp_path / "root", cgroup=Cgroup("haproof-x"), lxcfs=None, cores=8)
    settings = dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line)
    assert "lxc.cap.drop =" in text.splitlines()
    assert settings["lxc.cgroup.dir.container"] == "haproof-x/101"
    assert str(4096 * 2**20) in (
        settings.get("lxc.cgroup.memory.limit_in_bytes"),
        settings.get("lxc.cgroup2.memory.max"),
    )
    assert ("lxc.cgroup.cpu.shares", "4096") in settings.items() or settings["lxc.cgroup2.cpu.weight"] == "400"
    assert settings["lxc.net.0.veth.pair"] == "v101i0"
    assert settings["lxc.net.0.ipv4.gateway"] == "172.31.0.1"
    assert settings["lxc.net.1.name"] == "ens19"
    assert "lxc.net.1.ipv4.address" not in settings


def test_disks_are_copied_kept_put_back_and_removed(paths: Paths, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(b"x" * 4096)
    driver = LxcDriver(paths)
    driver.create_disk(9000, image)
    template, clone = (Home(paths.state / "guests" / vmid).disk.image for vmid in ("9000", "101"))
    template.write_text("before")
    driver.clone_disk(9000, 101)
    template.write_text("after")
    assert clone.read_text() == "before"

    driver.snapshot(101, "s1")
    clone.write_text("changed")
    with pytest.raises(DriverError, match="exists already"):
        driver.snapshot(101, "s1")
    driver.rollback(101, "s1")
    assert clone.read_text() == "before"
    clone.write_text("changed again")
    driver.rollback(101, "s1")
    assert clone.read_text() == "before"
    driver.delete_snapshot(101, "s1")
    with pytest.raises(DriverError, match="no snapshot s1"):
        driver.rollback(101, "s1")

    with pytest.raises(DriverError, match="has a disk already"):
        driver.clone_disk(9000, 101)
    with pytest.raises(DriverError, match="has no disk"):
        driver.clone_disk(42, 43)
    driver.delete_disk(101)
    driver.delete_disk(9000)
    assert image.read_bytes() == b"x" * 4096
    assert not list((paths.state / "guests").iterdir())


def test_a_stopped_guest_refuses_and_is_left_alone(paths: Paths) -> None:
    driver = LxcDriver(paths)
    driver.stop(101)
    driver.shutdown(101, 1)
    assert driver.status(101).state == "stopped"
    with pytest.raises(DriverError, match="it is not running"):
        driver.execute(101, ["true"])


def test_ssh_key_is_made_once_and_private(tmp_path: Path) -> None:
    key = tmp_path / "id_ed25519"
    ensure_ssh_key(key)
    made = key.read_bytes()
    assert key.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "id_ed25519.pub").read_text().startswith("ssh-ed25519 ")
    ensure_ssh_key(key)
    assert key.read_bytes() == made


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="may not ask to be served first")
@pytest.mark.parametrize(("another_machine", "policy"), [(True, os.SCHED_RR), (False, os.SCHED_OTHER)])
def test_what_stands_for_another_machine_is_served_first_by_the_processor(another_machine: bool, policy: int) -> None:
    before = set(children(os.getpid()))
    child = Child("sham", ["sleep", "60"], another_machine=another_machine)
    child.start()
    try:
        (pid,) = set(children(os.getpid())) - before
        assert os.sched_getscheduler(pid) == policy
    finally:
        child.end()
