"""Runs guests as LXC system containers: disks of their own, power, cables, freezer, snapshots."""

import json
import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from pathlib import Path

from lab import namespace, network
from lab.attach import attach_command
from lab.boot import POWEROFF_SIGNAL, cable_name, render_config, render_preparation
from lab.cgroup import Cgroup
from lab.disk import Disk, settle
from lab.driver import DriverError, ExecResult, GuestSpec, GuestStatus, Interface
from lab.home import Home
from lab.paths import Paths
from lab.tool import run
from provisioning.poll import DeadlineExceeded, NotYet, poll

START_TIMEOUT_S = 30.0


@dataclass
class _Running:
    """A guest that is up: LXC's process in the foreground, and `ended`, set when all is put away."""

    spec: GuestSpec
    process: subprocess.Popen[bytes]
    ended: threading.Event = field(default_factory=threading.Event)


@contextmanager
def _named(guest: int, what: str) -> Iterator[None]:
    """Say of which guest and of what an error is; raises DriverError."""
    try:
        yield
    except (OSError, DeadlineExceeded) as error:
        raise DriverError(f"guest {guest}: {what} failed: {error}") from error


class LxcDriver:
    """The `lab.driver.Driver` of Debian's LXC 5.0; runs inside the lab's namespaces (`namespace.enter`).

    Every method that changes a guest raises DriverError when that cannot be done, as the `Driver` says.
    """

    def __init__(self, paths: Paths, lxcfs: Path | None = None) -> None:
        self._guests = paths.state / "guests"
        self._run = paths.run
        self._lxc = paths.run / "lxc"
        self._cgroup = Cgroup(paths.run.name)
        self._lxcfs = lxcfs
        self._running: dict[int, _Running] = {}
        self._locks: dict[int, threading.RLock] = {}
        self._guard = threading.RLock()

    # -- disks

    def create_disk(self, vmid: int, image: Path) -> None:
        """Copy the image."""
        with self._new_home(vmid) as home:
            home.disk.copy_from(Disk(image))

    def clone_disk(self, source_vmid: int, vmid: int) -> None:
        """Copy the source's disk, frozen meanwhile."""
        with self._lock(source_vmid):
            source = self._home(source_vmid)
            with self._new_home(vmid) as home, self._still(source_vmid):
                home.disk.copy_from(source.disk)

    def delete_disk(self, vmid: int) -> None:
        """Remove everything of `vmid`."""
        with self._lock(vmid):
            self._require_stopped(vmid, "deletion of its disk")
            folder = self._home(vmid).folder
            # Renamed first: a removal cut short must not leave half a disk that looks whole.
            doomed = folder.with_name(f"{vmid}.deleted")
            shutil.rmtree(doomed, ignore_errors=True)
            folder.rename(doomed)
            shutil.rmtree(doomed)

    def snapshot(self, vmid: int, name: str) -> None:
        """Copy the disk, frozen meanwhile."""
        with self._lock(vmid):
            home = self._home(vmid)
            kept = home.snapshot(name)
            if kept.image.exists():
                raise DriverError(f"guest {vmid}: snapshot {name} exists already: delete it first")
            kept.image.parent.mkdir(exist_ok=True)
            with self._still(vmid), _named(vmid, f"snapshot {name}"):
                kept.copy_from(home.disk)

    def rollback(self, vmid: int, name: str) -> None:
        """Replace the disk by a copy of the snapshot, in one step."""
        with self._lock(vmid):
            self._require_stopped(vmid, f"rollback to {name}")
            kept = self._snapshot(vmid, name)
            with _named(vmid, f"rollback to {name}"):
                self._home(vmid).disk.copy_from(kept)

    def delete_snapshot(self, vmid: int, name: str) -> None:
        """Remove the snapshot's copy."""
        with self._lock(vmid):
            self._snapshot(vmid, name).image.unlink()

    # -- power

    def start(self, spec: GuestSpec) -> None:
        """Prepare the root as cloud-init would, and boot; init runs when this returns."""
        with self._lock(spec.vmid):
            self._require_stopped(spec.vmid, "start")
            home, root = self._home(spec.vmid), self._root(spec.vmid)
            with _named(spec.vmid, "mount of its disk"):
                home.disk.mount(root, spec.disk_bytes)
            try:
                self._prepare(spec, home, root)
                running = self._launch(spec, home, root)
            except BaseException:
                home.disk.unmount(root)
                raise
            threading.Thread(
                target=self._follow, args=(running, home, root), name=f"guest-{spec.vmid}", daemon=True
            ).start()
            try:
                poll("init", lambda: self._init_is_up(running), timeout_s=START_TIMEOUT_S, interval_s=0.02)
            except DeadlineExceeded as error:
                self.stop(spec.vmid)
                raise DriverError(f"guest {spec.vmid}: start failed: {error}; {_complaint(home.lxc_log)}") from error
            # Each is a machine: all of them together would else get what one session beside them gets.
            self._cgroup.weigh(100 * len(self._running))

    def stop(self, vmid: int) -> None:
        """Silence the cables, then kill: nobody on the network hears a goodbye."""
        with self._lock(vmid):
            running = self._running.get(vmid)
            if running is None:
                return
            for nic in running.spec.nics:
                network.set_link(cable_name(vmid, nic.index), up=False)
            self._tool("lxc-stop", vmid, "--kill")
            # A guest whose command socket is gone, or that forked while it died.
            self._cgroup.child(str(vmid)).kill()
            if not running.ended.wait(START_TIMEOUT_S):
                raise DriverError(f"guest {vmid}: stop failed: its processes would not end")

    def shutdown(self, vmid: int, timeout_s: float) -> None:
        """Ask init to power off."""
        running = self._running.get(vmid)
        if running is None:
            return
        asked = 0

        def ended() -> bool:
            nonlocal asked
            # An init that has just begun does not listen yet, so it is asked again every few seconds.
            if asked % 5 == 0 and (pid := self._init_pid(running)):
                os.kill(pid, POWEROFF_SIGNAL)
            asked += 1
            if not running.ended.wait(1.0):
                raise NotYet("init still runs")
            return True

        try:
            poll(f"power-off of guest {vmid}", ended, timeout_s=timeout_s, interval_s=0)
        except (DeadlineExceeded, ProcessLookupError) as error:
            if not running.ended.is_set():
                raise DriverError(f"guest {vmid}: shutdown failed: {error}") from error

    def suspend(self, vmid: int) -> None:
        """Freeze it."""
        self._require_running(vmid, "suspend")
        self._freeze(vmid, frozen=True)

    def resume(self, vmid: int) -> None:
        """Thaw it."""
        self._require_running(vmid, "resume")
        self._freeze(vmid, frozen=False)

    # -- devices

    def set_link(self, vmid: int, nic_index: int, up: bool) -> None:
        """Plug or unplug a cable; it stays so over a reboot from inside."""
        running = self._require_running(vmid, "change of a cable")
        if nic_index not in {nic.index for nic in running.spec.nics}:
            raise DriverError(f"guest {vmid}: change of a cable failed: it has no net{nic_index}")
        cable = cable_name(vmid, nic_index)
        mark = self._home(vmid).unplugged / cable
        if up:
            mark.unlink(missing_ok=True)
        else:
            mark.touch()
        if not network.set_link(cable, up):
            raise DriverError(f"guest {vmid}: change of a cable failed: {cable} is not there (is it rebooting?)")

    def set_memory(self, vmid: int, memory_mib: int) -> None:
        """Write the cgroup's limit."""
        self._require_running(vmid, "change of memory")
        cgroup = self._cgroup.child(str(vmid))
        limit = cgroup.find("memory.limit_in_bytes") or cgroup.find("memory.max")
        with _named(vmid, f"change of memory to {memory_mib} MiB"):
            if limit is None:
                raise FileNotFoundError("the machine has no memory cgroup")
            limit.write_text(str(memory_mib * 2**20))

    def set_cpu_units(self, vmid: int, cpu_units: int) -> None:
        """Write the cgroup's weight."""
        self._require_running(vmid, "change of weight")
        with _named(vmid, f"change of weight to {cpu_units}"):
            self._cgroup.child(str(vmid)).weigh(cpu_units)

    # -- questions

    def running(self) -> tuple[int, ...]:
        """List the guests that are up, suspended ones too."""
        return tuple(sorted(self._running.copy()))

    def status(self, vmid: int) -> GuestStatus:
        """Read LXC's process, the freezer and the cgroup's counters."""
        running = self._running.get(vmid)
        if running is None or running.ended.is_set():
            return GuestStatus("stopped")
        cgroup = self._cgroup.child(str(vmid))
        pid = self._init_pid(running)
        return GuestStatus(
            state="paused" if cgroup.is_frozen() else "running",
            pid=pid,
            uptime_s=_uptime_s(pid) if pid else 0,
            memory_bytes=int(cgroup.read("memory.usage_in_bytes") or cgroup.read("memory.current") or 0),
            cpu_time_s=_cpu_time_s(cgroup),
        )

    def execute(self, vmid: int, argv: list[str], stdin: bytes = b"") -> ExecResult:
        """Run a command as root inside, with a clean environment."""
        self._require_running(vmid, "command")
        if self._cgroup.child(str(vmid)).is_frozen():
            raise DriverError(f"guest {vmid}: command failed: the guest is suspended")
        done = subprocess.run(
            attach_command(self._run, vmid, argv), input=stdin, capture_output=True, check=False, cwd="/"
        )
        return ExecResult(done.returncode, done.stdout, done.stderr)

    def interfaces(self, vmid: int) -> tuple[Interface, ...]:
        """Look at the guest's network from the machine: the answer needs nothing inside."""
        pid = self._init_pid(self._require_running(vmid, "list of interfaces"))
        with _named(vmid, "list of interfaces"):
            listing = run("nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-j", "address")
        return tuple(
            Interface(
                name=link["ifname"],
                mac=link.get("address", "00:00:00:00:00:00"),
                addresses=tuple(
                    IPv4Interface(f"{a['local']}/{a['prefixlen']}") for a in link["addr_info"] if a["family"] == "inet"
                ),
            )
            for link in json.loads(listing)
        )

    # -- how

    def _home(self, vmid: int) -> Home:
        home = Home(self._guests / str(vmid))
        if not home.disk.image.is_file():
            raise DriverError(f"guest {vmid}: it has no disk at {home.folder}")
        return home

    def _snapshot(self, vmid: int, name: str) -> Disk:
        kept = self._home(vmid).snapshot(name)
        if not kept.image.is_file():
            raise DriverError(f"guest {vmid}: there is no snapshot {name}")
        return kept

    @contextmanager
    def _lock(self, vmid: int) -> Iterator[None]:
        with self._guard:
            lock = self._locks.setdefault(vmid, threading.RLock())
        with lock:
            yield

    @contextmanager
    def _new_home(self, vmid: int) -> Iterator[Home]:
        """Make a home beside its place and move it there when it is whole."""
        home, partial = self._guests / str(vmid), self._guests / f"{vmid}.partial"
        with self._lock(vmid):
            if home.exists():
                raise DriverError(f"guest {vmid}: it has a disk already at {home}")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            try:
                with _named(vmid, "making its disk"):
                    yield Home(partial)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            partial.rename(home)

    def _require_stopped(self, vmid: int, what: str) -> None:
        if vmid in self._running:
            raise DriverError(f"guest {vmid}: {what} failed: it is running")

    def _require_running(self, vmid: int, what: str) -> _Running:
        running = self._running.get(vmid)
        if running is None or running.ended.is_set():
            raise DriverError(f"guest {vmid}: {what} failed: it is not running")
        return running

    @contextmanager
    def _still(self, vmid: int) -> Iterator[None]:
        """While inside, nothing writes to the disk, and all that was written is in its place."""
        state, root = self.status(vmid).state, self._root(vmid)
        if state == "stopped":
            yield
            return
        if state == "running":
            self.suspend(vmid)
        try:
            with _named(vmid, "writing of its disk"):
                settle(root)
            yield
        finally:
            if state == "running":
                self.resume(vmid)

    def _root(self, vmid: int) -> Path:
        return self._run / "roots" / str(vmid)

    def _prepare(self, spec: GuestSpec, home: Home, root: Path) -> None:
        script = render_preparation(spec, first_boot=not home.booted.exists())
        devices = root / "dev"
        devices.mkdir(exist_ok=True)
        namespace.mount("/dev", devices, flags=namespace.MS_BIND)
        try:
            with _named(spec.vmid, "preparation"):
                run("chroot", root, "/bin/sh", "-s", stdin=script)
        finally:
            namespace.unmount(devices)
        home.booted.touch()
        home.unplugged.mkdir(exist_ok=True)
        for nic in spec.nics:
            mark = home.unplugged / cable_name(spec.vmid, nic.index)
            if nic.link_down:
                mark.touch()
            else:
                mark.unlink(missing_ok=True)
        # LXC's arguments: guest, "net", "up", type, bridge, cable.
        marks = shlex.quote(str(home.unplugged))
        home.cable_script.write_text(f'#!/bin/sh\nif [ -e {marks}/"$6" ]; then exec ip link set "$6" down; fi\n')
        home.cable_script.chmod(0o700)

    def _launch(self, spec: GuestSpec, home: Home, root: Path) -> _Running:
        config = self._lxc / str(spec.vmid) / "config"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(
            render_config(spec, home, root, cgroup=self._cgroup, lxcfs=self._lxcfs, cores=os.cpu_count() or spec.cores)
        )
        home.lxc_log.unlink(missing_ok=True)
        process = subprocess.Popen(
            ["lxc-start", "--foreground", f"--lxcpath={self._lxc}", f"--name={spec.vmid}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C meant for the lab is not one for its guests
        )
        running = _Running(spec, process)
        self._running[spec.vmid] = running
        return running

    def _follow(self, running: _Running, home: Home, root: Path) -> None:
        """Wait for the guest's end, whoever caused it, and put its things away; LXC follows reboots."""
        vmid = running.spec.vmid
        running.process.wait()
        try:
            home.disk.unmount(root)
            shutil.rmtree(self._lxc / str(vmid), ignore_errors=True)
            for name in (str(vmid), f"monitor-{vmid}"):
                self._cgroup.child(name).remove()
        finally:
            del self._running[vmid]
            running.ended.set()

    def _init_pid(self, running: _Running) -> int | None:
        """Find init: the child of LXC's process; None while the guest begins, reboots or has ended."""
        monitor = running.process.pid
        try:
            children = Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return int(children[0]) if children else None

    def _init_is_up(self, running: _Running) -> bool:
        if running.process.poll() is not None:
            running.ended.wait(START_TIMEOUT_S)
            complaint = _complaint(self._home(running.spec.vmid).lxc_log)
            raise DriverError(f"guest {running.spec.vmid}: start failed: {complaint}")
        state = self._tool("lxc-info", running.spec.vmid, "-sH").strip()
        if state != "RUNNING":
            raise NotYet(f"state {state}")
        return True

    def _freeze(self, vmid: int, frozen: bool) -> None:
        with _named(vmid, "suspend" if frozen else "resume"):
            self._cgroup.child(str(vmid)).freeze(frozen)

    def _tool(self, name: str, vmid: int, *arguments: str) -> str:
        """What a tool of LXC says of a guest, whether or not it does what was asked."""
        argv = [name, f"--lxcpath={self._lxc}", f"--name={vmid}", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def _complaint(log: Path, lines: int = 3) -> str:
    """Say what LXC complained of first, as what follows from it comes after."""
    if not log.exists():
        return "lxc-start ended without a word"
    # Other tools of LXC write here too.
    said = (line.split(maxsplit=4) for line in log.read_text(errors="replace").splitlines())
    errors = [words[4] for words in said if words[0] == "lxc-start" and "ERROR" in words]
    return "; ".join(errors[:lines]) or "lxc-start ended without a word"


def _uptime_s(pid: int) -> int:
    """Read how long a process has run: now less field 22, its start in ticks since boot (proc(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    now_s = float(Path("/proc/uptime").read_text().split()[0])
    return max(0, int(now_s - int(fields[19]) / os.sysconf("SC_CLK_TCK")))


def _cpu_time_s(cgroup: Cgroup) -> float:
    if usage := cgroup.read("cpuacct.usage"):
        return int(usage) / 1e9
    stat = dict(line.split() for line in (cgroup.read("cpu.stat") or "").splitlines())
    return int(stat.get("usage_usec", 0)) / 1e6
