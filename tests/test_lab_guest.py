"""Real guests in a real sealed network, beside any lab that is up: needs Linux, root and Debian's lxc."""

import multiprocessing
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from lab import leftovers, namespace, network, sysctl
from lab.cgroup import Cgroup
from lab.disk import Disk
from lab.driver import DriverError, GuestSpec, GuestStatus, Nic
from lab.guest import LxcDriver
from lab.home import Home
from lab.mirror import content
from lab.paths import Paths
from provisioning.poll import poll

pytestmark = pytest.mark.lab
TEMPLATE = 9000
GIB = 2**30


def image() -> Path:
    """Find the machines' image: HAPROOF_TEST_IMAGE, else what the mirror serves."""
    if named := os.environ.get("HAPROOF_TEST_IMAGE"):
        return Path(named)
    return next((content.build(print) / "template").glob("*.raw"))


def spec(vmid: int) -> GuestSpec:
    host = vmid - 80
    gateway = IPv4Address("172.31.0.1")
    return GuestSpec(
        vmid=vmid,
        name=f"node{vmid}",
        cores=1,
        memory_mib=512,
        nics=(
            Nic(0, "vmbr1", f"02:00:00:00:00:{host:02x}", IPv4Interface(f"172.31.0.{host}/24"), gateway),
            Nic(1, "vmbr2", f"02:00:00:00:01:{host:02x}", IPv4Interface(f"10.20.20.{host}/24")),
        ),
        authorized_keys=("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5wXv8jTgZl2Jc1Dk3Xq0mYvA8Q5m6b1rVq0Zl9u4vJ test",),
    )


class Inside:
    """What the process in the sealed network keeps between the calls made to it."""

    driver: LxcDriver


def enter(paths: Paths) -> None:
    sysctl.apply(paths.run / "sysctl.json")
    Cgroup(paths.run.name).child("daemon").join(os.getpid())
    (paths.run / "scratch").mkdir()
    namespace.enter(paths.run / "scratch")
    network.build()
    Inside.driver = LxcDriver(paths)


def drive(method: str, *arguments: Any) -> Any:
    return getattr(Inside.driver, method)(*arguments)


def greeting(address: str) -> bytes:
    """Connect to SSH and read how it greets; nothing when it does not."""
    with suppress(OSError), socket.create_connection((address, 22), 0.5) as connection:
        connection.settimeout(0.5)
        return connection.recv(64)
    return b""


def last_words(address: str, method: str, *arguments: Any) -> str:
    """Hold a connection open while the driver does something; say how its other end behaved within 2 s."""
    with socket.create_connection((address, 22), 2) as connection:
        connection.recv(64)
        drive(method, *arguments)
        connection.settimeout(2)
        try:
            while connection.recv(64):
                pass
        except TimeoutError:
            return "silence"
        except ConnectionResetError:
            return "reset"
        return "goodbye"


def complaints(disk: Disk) -> str:
    """What is wrong with the file system on a disk that nobody has mounted."""
    done = subprocess.run(["e2fsck", "-f", "-n", disk.image], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode else ""


@dataclass(frozen=True)
class World:
    """The sealed network of these tests, and the process that lives in it."""

    paths: Paths
    pool: ProcessPoolExecutor

    def drive(self, method: str, *arguments: Any) -> Any:
        return self.pool.submit(drive, method, *arguments).result(120)

    def status(self, vmid: int) -> GuestStatus:
        status = self.drive("status", vmid)
        assert isinstance(status, GuestStatus)
        return status

    def run(self, vmid: int, script: str) -> str:
        done = self.drive("execute", vmid, ["/bin/sh", "-c", script])
        assert done.exit_code == 0, done
        return str(done.stdout.decode())

    def answers(self, vmid: int) -> bool:
        return bool(self.pool.submit(greeting, f"172.31.0.{vmid - 80}").result(10))

    def await_ssh(self, vmid: int) -> None:
        poll(f"SSH of {vmid}", lambda: self.answers(vmid), timeout_s=30, interval_s=0.1)

    def ensure(self, vmid: int, **changes: Any) -> None:
        """Have the guest up."""
        if not (self.paths.state / "guests" / str(vmid)).exists():
            self.drive("clone_disk", TEMPLATE, vmid)
        if self.status(vmid).state == "stopped":
            self.drive("start", replace(spec(vmid), **changes))
            self.await_ssh(vmid)


def open_world(paths: Paths) -> World:
    paths.run.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    return World(paths, ProcessPoolExecutor(1, mp_context=context, initializer=enter, initargs=(paths,)))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    base = tmp_path_factory.mktemp("lab")
    paths = Paths(base / "state", Path(f"/run/haproof-test-{os.getpid()}"), base / "cache")
    world = open_world(paths)
    try:
        world.drive("create_disk", TEMPLATE, image())
        yield world
    finally:
        world.pool.shutdown()
        leftovers.clear(paths)
        assert not leftovers.inspect(paths)


def test_a_clone_boots_as_a_machine_of_its_own(world: World) -> None:
    world.ensure(101)
    world.ensure(102)
    assert world.run(101, "hostname").strip() == "node101"
    identity = "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub /proc/sys/kernel/random/boot_id"
    first, second = (world.run(vmid, identity).split() for vmid in (101, 102))
    assert first[0] != second[0]
    assert first[2] != second[2]
    assert first[-1] != second[-1]
    assert world.run(101, "su debian -c 'sudo -n id -u'").strip() == "0"
    assert world.run(101, "stat -c '%a %U' ~debian/.ssh ~debian/.ssh/authorized_keys").splitlines() == [
        "700 debian",
        "600 debian",
    ]
    assert {interface.name for interface in world.drive("interfaces", 101)} == {"lo", "ens18", "ens19"}


def test_machines_get_as_much_of_the_processors_as_so_many_sessions(world: World) -> None:
    world.ensure(101)
    world.ensure(102)
    lab = Cgroup(world.paths.run.name)
    share, ordinary = (lab.find("cpu.shares"), 1024) if lab.find("cpu.shares") else (lab.find("cpu.weight"), 100)
    if share is None:
        pytest.skip("this machine shares its processors by no control group")
    assert int(share.read_text()) == 2 * ordinary


def test_a_machine_weighs_what_its_configuration_says(world: World) -> None:
    world.ensure(101)
    world.drive("stop", 101)
    world.ensure(101, cpu_units=400)
    own = Cgroup(world.paths.run.name).child("101")
    share, ordinary = (own.find("cpu.shares"), 1024) if own.find("cpu.shares") else (own.find("cpu.weight"), 100)
    if share is None:
        pytest.skip("this machine shares its processors by no control group")
    assert int(share.read_text()) == 4 * ordinary
    world.drive("set_cpu_units", 101, 50)
    assert int(share.read_text()) == ordinary // 2


def test_exit_code_output_and_input_of_a_command(world: World) -> None:
    world.ensure(101)
    done = world.drive("execute", 101, ["sh", "-c", "cat; echo no >&2; exit 3"], b"in")
    assert (done.exit_code, done.stdout, done.stderr) == (3, b"in", b"no\n")


def test_networks_are_apart(world: World) -> None:
    world.drive("clone_disk", TEMPLATE, 110)
    only_cluster = spec(110).nics[:1]
    world.drive("start", replace(spec(110), nics=only_cluster))
    world.ensure(101)
    world.run(110, "ping -c 1 -W 2 172.31.0.21")
    far = world.drive("execute", 110, ["ping", "-c", "1", "-W", "1", "10.20.20.21"])
    assert far.exit_code != 0
    world.drive("stop", 110)
    world.drive("delete_disk", 110)


def test_whoever_asks_for_a_name_out_there_hears_at_once_that_there_is_no_way(world: World) -> None:
    world.ensure(101)
    # Often, as the kernel tells some things once a second only.
    ask = "exec 3<>/dev/udp/192.0.2.53/53; echo >&3; read -t 2 -u 3 || test $? -le 128 || echo silence"
    heard = world.run(101, f"bash -c 'for _ in 1 2 3 4 5 6 7 8 9 10; do {ask}; done' 2>&1").splitlines()
    assert [line.rpartition(": ")[2] for line in heard] == ["No route to host"] * 10


def test_a_power_cut_is_silent_and_a_shutdown_is_not(world: World) -> None:
    world.ensure(101)
    assert world.pool.submit(last_words, "172.31.0.21", "stop", 101).result(60) == "silence"
    assert world.status(101).state == "stopped"
    world.ensure(101)
    assert world.pool.submit(last_words, "172.31.0.21", "shutdown", 101, 30.0).result(60) == "goodbye"
    assert world.status(101).state == "stopped"


def test_suspended_guests_hang_and_come_back(world: World) -> None:
    world.ensure(101)
    world.drive("suspend", 101)
    assert world.status(101).state == "paused"
    assert not world.answers(101)
    with pytest.raises(DriverError, match="suspended"):
        world.drive("execute", 101, ["true"])
    world.drive("resume", 101)
    assert world.answers(101)
    world.drive("suspend", 101)
    world.drive("stop", 101)
    assert world.status(101).state == "stopped"


def test_an_unplugged_cable_stays_so_over_a_reboot_from_inside(world: World) -> None:
    world.ensure(101)
    world.drive("set_link", 101, 1, False)
    before = world.status(101).pid
    world.drive("execute", 101, ["systemctl", "--no-block", "reboot"])
    poll("another init", lambda: world.status(101).pid not in (before, None), timeout_s=30, interval_s=0.1)
    world.await_ssh(101)
    assert world.run(101, "cat /sys/class/net/ens18/carrier /sys/class/net/ens19/carrier").split() == ["1", "0"]
    world.drive("set_link", 101, 1, True)
    assert world.run(101, "cat /sys/class/net/ens19/carrier").strip() == "1"


def test_poweroff_from_inside_ends_in_stopped(world: World) -> None:
    world.ensure(101)
    world.drive("execute", 101, ["systemctl", "--no-block", "poweroff"])
    poll("stopped", lambda: world.status(101).state == "stopped", timeout_s=30, interval_s=0.1)


def test_what_is_written_stays_and_a_rollback_takes_it_back(world: World) -> None:
    world.ensure(102)
    world.run(102, "echo one > /srv/file; echo one > /mnt/file; rm /etc/issue; rm -r /etc/skel; mkdir /etc/skel")
    world.drive("snapshot", 102, "s1")
    world.run(102, "echo two > /srv/file; echo two > /mnt/file; touch /etc/issue")
    world.drive("stop", 102)
    world.ensure(102)
    assert world.run(102, "cat /srv/file /mnt/file").split() == ["two", "two"]
    with pytest.raises(DriverError, match="running"):
        world.drive("rollback", 102, "s1")
    world.drive("stop", 102)
    world.drive("rollback", 102, "s1")
    world.ensure(102)
    assert world.run(102, "cat /srv/file /mnt/file; test ! -e /etc/issue").split() == ["one", "one"]
    # Once more, for what was not copied the first time is not to be shared with the snapshot.
    world.run(102, "sed -i s/Debian/NAIBED/ /usr/lib/os-release; echo one > /srv/file; printf two >> /mnt/file")
    world.run(102, "rmdir /etc/skel")
    world.drive("stop", 102)
    world.drive("rollback", 102, "s1")
    world.ensure(102)
    again = world.run(102, "cat /srv/file /mnt/file; grep NAIBED /usr/lib/os-release; ls /etc/skel && ls -A /etc/skel")
    assert again.split() == ["one", "one"]
    world.drive("delete_snapshot", 102, "s1")


def test_a_disk_is_as_large_as_declared_and_a_full_one_is_full_for_its_own_machine_only(world: World) -> None:
    world.drive("stop", 102)
    world.ensure(102, disk_bytes=2 * GIB)
    where = "findmnt -n -r -o FSTYPE,FSROOT,TARGET -T /var/lib"
    assert world.run(102, where).split() == ["ext4", "/", "/"]
    assert 1.8 * GIB < int(world.run(102, "df -B1 --output=size / | tail -n 1")) < 2 * GIB
    world.ensure(101)
    world.run(102, "head -c 200M /dev/urandom > /srv/large; sync /srv/large")
    disk = Home(world.paths.state / "guests" / "102").disk
    taken_bytes = disk.image.stat().st_blocks * 512
    filled = world.drive("execute", 102, ["sh", "-c", "fallocate -l 3G /srv/full; dd if=/dev/zero of=/srv/full bs=1M"])
    assert b"No space left on device" in filled.stderr
    world.run(101, "echo still here > /srv/file; sync /srv/file")
    world.run(102, "rm /srv/full /srv/large; sync --file-system /srv; fstrim /")
    assert disk.image.stat().st_blocks * 512 < taken_bytes - 150 * 2**20
    world.drive("stop", 102)
    world.ensure(102, disk_bytes=3 * GIB)
    assert int(world.run(102, "df -B1 --output=size / | tail -n 1")) > 2.8 * GIB
    world.drive("stop", 102)
    assert complaints(disk) == ""


def test_a_snapshot_of_a_machine_that_writes_is_a_whole_file_system(world: World) -> None:
    world.ensure(102)
    world.run(102, "(while :; do date > /srv/a; mv /srv/a /srv/b; sync /srv/b; done) > /dev/null 2>&1 &")
    poll("its writing", lambda: world.run(102, "cat /srv/b"), timeout_s=5, interval_s=0.1)
    world.drive("snapshot", 102, "busy")
    world.drive("stop", 102)
    world.drive("rollback", 102, "busy")
    world.drive("delete_snapshot", 102, "busy")
    world.ensure(102)
    assert world.run(102, "cat /srv/b")
    world.drive("stop", 102)
    assert complaints(Home(world.paths.state / "guests" / "102").disk) == ""


def test_memory_is_limited(world: World) -> None:
    world.ensure(101)
    hog = "head -c 700000000 /dev/zero | tail -c 700000000 | wc -c"
    killed = world.drive("execute", 101, ["sh", "-c", f"set -o pipefail 2>/dev/null; {hog}"])
    assert b"700000000" not in killed.stdout
    assert world.answers(101)
    world.drive("set_memory", 101, 2048)
    assert b"700000000" in world.drive("execute", 101, ["sh", "-c", hog]).stdout


def test_a_guest_that_cannot_start_says_why(world: World) -> None:
    world.drive("clone_disk", TEMPLATE, 120)
    nowhere = (replace(spec(120).nics[0], bridge="vmbr9"),)
    with pytest.raises(DriverError, match=r"guest 120: start failed: .*vmbr9"):
        world.drive("start", replace(spec(120), nics=nowhere))
    assert world.status(120).state == "stopped"
    world.drive("delete_disk", 120)


def test_nothing_stays_after_everything_was_killed(tmp_path: Path) -> None:
    before = {name: (sysctl.ROOT / name).read_text() for name in sysctl.AT_LEAST}
    paths = Paths(tmp_path / "state", Path(f"/run/haproof-killed-{os.getpid()}"), tmp_path / "cache")
    world = open_world(paths)
    world.drive("create_disk", TEMPLATE, image())
    world.ensure(101)
    Home(paths.state / "guests" / "101").disk.image.unlink()
    (pid,) = world.pool._processes
    os.kill(pid, signal.SIGKILL)
    poll("its end", lambda: pid not in Cgroup(paths.run.name).members(), timeout_s=5, interval_s=0.05)

    found = leftovers.inspect(paths)
    assert found.processes
    assert found.namespaces
    assert found.cgroups
    assert found.loop_devices
    leftovers.clear(paths)
    assert not leftovers.inspect(paths)
    assert {name: (sysctl.ROOT / name).read_text() for name in sysctl.AT_LEAST} == before
