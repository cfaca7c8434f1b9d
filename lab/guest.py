"""Runs guests as LXC system containers: disks of their own, power, cables, freezer, snapshots."""

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from pathlib import Path

from lab import loop, namespace, network
from lab.attach import attach_command
from lab.cgroup import Cgroup, hierarchies, shares_of
from lab.driver import DriverError, ExecResult, GuestSpec, GuestStatus, Interface, Nic
from lab.paths import Paths
from provisioning.poll import DeadlineExceeded, NotYet, poll

FIRST_NIC = 18  # a virtio card of a Proxmox VM is ens18, the second ens19
POWEROFF_SIGNAL = signal.SIGRTMIN + 3  # systemd(1): halt; the same one `lxc-stop` sends
START_TIMEOUT_S = 30.0
RELEASE_TIMEOUT_S = 30.0
# What a guest removes takes no room on the machine any more. And the kernel writes nothing of its own accord: it would
# clear tables of inodes beside whoever copies the disk.
MOUNT_OPTIONS = "discard,noinit_itable"
MENDED = 1  # e2fsck(8): errors were there, and are not any more
EXT4_IOC_CHECKPOINT = 0x4004662B  # linux/ext4.h
LXCFS_FILES = ("meminfo", "uptime")


def nic_name(nic: Nic) -> str:
    """Name a card as the guest sees it."""
    return f"ens{FIRST_NIC + nic.index}"


def cable_name(vmid: int, nic_index: int) -> str:
    """Name the bridge's end of a card's cable."""
    return f"v{vmid}i{nic_index}"


def render_interfaces(nics: tuple[Nic, ...]) -> str:
    """Write /etc/network/interfaces as true documentation of what is set (interfaces(5)).

    No `auto` lines: the cards come up with their addresses before init runs, and ifup would fail on them.
    """
    lines = ["# Brought up by the hypervisor at boot.", "auto lo", "iface lo inet loopback"]
    for nic in nics:
        lines += ["", f"iface {nic_name(nic)} inet {'static' if nic.address else 'manual'}"]
        if nic.address:
            lines.append(f"    address {nic.address}")
        if nic.gateway:
            lines.append(f"    gateway {nic.gateway}")
    return "\n".join(lines) + "\n"


def render_preparation(spec: GuestSpec, first_boot: bool) -> str:
    """Write the shell script that does inside the guest's root what cloud-init does at boot.

    A clone is a new machine: at its first boot it loses the identity it was copied with (machine id, SSH host
    keys), and gets its user. Later boots only follow the configuration.
    """
    user, name = shlex.quote(spec.user), shlex.quote(spec.name)
    lines = ["set -eu", f"echo {name} > /etc/hostname", "touch /etc/hosts"]
    lines += [
        r"grep -q '[[:space:]]localhost\b' /etc/hosts || "
        r"printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' >> /etc/hosts",
        "mkdir -p /etc/network /etc/sudoers.d",
        f"printf %s {shlex.quote(render_interfaces(spec.nics))} > /etc/network/interfaces",
    ]
    if spec.nameserver:
        lines += [
            "rm -f /etc/resolv.conf",
            f"echo nameserver {shlex.quote(spec.nameserver)} > /etc/resolv.conf",
        ]
    if first_boot:
        lines += [
            ": > /etc/machine-id",
            "rm -f /var/lib/dbus/machine-id /etc/ssh/ssh_host_*",
            "if [ -x /usr/bin/ssh-keygen ]; then ssh-keygen -A; fi",
            f"grep -q '[[:space:]]'{name} /etc/hosts || echo 127.0.1.1 {name} >> /etc/hosts",
        ]
    if spec.authorized_keys:
        keys = shlex.quote("\n".join(spec.authorized_keys) + "\n")
        lines += [
            f"id {user} || useradd --create-home --shell /bin/bash --password '*' {user}",
            f"home=$(getent passwd {user} | cut -d: -f6)",
            f'install -d -m 700 -o {user} -g "$(id -g {user})" "$home/.ssh"',
            f'printf %s {keys} > "$home/.ssh/authorized_keys"',
            'chmod 600 "$home/.ssh/authorized_keys"',
            f'chown {user}: "$home/.ssh/authorized_keys"',
        ]
        if spec.user != "root":
            sudoers = f"/etc/sudoers.d/90-{user}"
            lines += [f"echo {user} 'ALL=(ALL) NOPASSWD:ALL' > {sudoers}", f"chmod 440 {sudoers}"]
    return "\n".join(lines) + "\n"


def render_config(spec: GuestSpec, home: "Disk", root: Path, *, cgroup: Cgroup, lxcfs: Path | None, cores: int) -> str:
    """Write the guest's LXC configuration (lxc.container.conf(5)); `cores` is how many the machine has.

    `root` is the mounted root, `lxcfs` the mount point of a running lxcfs, when there is one.
    """
    unified = all(h.unified for h in hierarchies())
    lines = [
        f"lxc.uts.name = {spec.name}",
        f"lxc.rootfs.path = dir:{root}",
        # A VM has a kernel of its own: nothing is taken from root in here, the sealed network is the wall.
        "lxc.cap.drop =",
        "lxc.apparmor.profile = unconfined",
        "lxc.mount.auto = proc:rw sys:rw cgroup:rw:force",
        "lxc.autodev = 1",
        "lxc.tty.max = 0",
        "lxc.pty.max = 64",
        "lxc.init.cmd = /sbin/init",
        f"lxc.signal.halt = {int(POWEROFF_SIGNAL)}",
        f"lxc.console.logfile = {home.console_log}",
        "lxc.console.path = none",
        f"lxc.log.file = {home.lxc_log}",
        "lxc.log.level = WARN",
        # What the guest mounts must reach its containers; systemd arranges that on real machines only.
        "lxc.rootfs.options = rshared",
        f"lxc.cgroup.dir.container = {cgroup.name}/{spec.vmid}",
        f"lxc.cgroup.dir.monitor = {cgroup.name}/monitor-{spec.vmid}",
        f"lxc.cgroup.dir.monitor.pivot = {cgroup.name}/pivot",
        "lxc.mount.entry = /dev/kmsg dev/kmsg none bind,create=file 0 0",
        "lxc.mount.entry = /dev/fuse dev/fuse none bind,create=file 0 0",
    ]
    memory_bytes = spec.memory_mib * 2**20
    quota_us = spec.cores * 100_000
    if unified:
        lines.append(f"lxc.cgroup2.memory.max = {memory_bytes}")
        lines.append(f"lxc.cgroup2.cpu.weight = {spec.cpu_units}")
        if spec.cores < cores:
            lines.append(f"lxc.cgroup2.cpu.max = {quota_us} 100000")
    else:
        lines.append(f"lxc.cgroup.memory.limit_in_bytes = {memory_bytes}")
        lines.append(f"lxc.cgroup.cpu.shares = {shares_of(spec.cpu_units)}")
        if spec.cores < cores:
            lines.append(f"lxc.cgroup.cpu.cfs_quota_us = {quota_us}")
    if lxcfs:
        for file in LXCFS_FILES:
            lines.append(f"lxc.mount.entry = {lxcfs}/proc/{file} proc/{file} none bind,optional 0 0")
    for nic in spec.nics:
        key = f"lxc.net.{nic.index}"
        lines += [
            f"{key}.type = veth",
            f"{key}.link = {nic.bridge}",
            f"{key}.flags = up",
            f"{key}.name = {nic_name(nic)}",
            f"{key}.hwaddr = {nic.mac}",
            f"{key}.veth.pair = {cable_name(spec.vmid, nic.index)}",
            f"{key}.script.up = {home.cable_script}",
        ]
        if nic.address:
            lines.append(f"{key}.ipv4.address = {nic.address}")
        if nic.gateway:
            lines.append(f"{key}.ipv4.gateway = {nic.gateway}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Disk:
    """Where a guest's disk lies, and what belongs to it."""

    home: Path

    @property
    def image(self) -> Path:
        """The disk: a file system, without partitions, in a file that is only as large as what was written."""
        return self.home / "disk.raw"

    @property
    def snapshots(self) -> Path:
        """One copy of the disk for each snapshot."""
        return self.home / "snapshots"

    @property
    def booted(self) -> Path:
        """Exists once the guest has had its first boot."""
        return self.home / "booted"

    @property
    def unplugged(self) -> Path:
        """Holds a file for each cable that is unplugged, named as the cable."""
        return self.home / "unplugged"

    @property
    def cable_script(self) -> Path:
        """Called by LXC when a cable was made, also at a reboot from inside: keeps an unplugged one so."""
        return self.home / "cable"

    @property
    def console_log(self) -> Path:
        """What init and the kernel's console said."""
        return self.home / "console.log"

    @property
    def lxc_log(self) -> Path:
        """What LXC said."""
        return self.home / "lxc.log"


@dataclass
class _Running:
    """A guest that is up: LXC's process in the foreground, and `ended`, set when all is put away."""

    spec: GuestSpec
    process: subprocess.Popen[bytes]
    ended: threading.Event = field(default_factory=threading.Event)


def _command(*argv: str | Path, guest: int | str, what: str, stdin: str | None = None) -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        cause = (done.stderr or done.stdout).strip().replace("\n", "; ")[-500:] or f"exit {done.returncode}"
        raise DriverError(f"guest {guest}: {what} failed: {cause}")
    return done.stdout


def _copy(source: Path, target: Path, guest: int) -> None:
    """Copy a disk; what is empty of it takes no room."""
    _command("cp", "--reflink=auto", "--sparse=always", source, target, guest=guest, what="disk copy")


def _empty_journal(root: Path) -> None:
    """Bring everything from the file system's journal to its place; raises OSError.

    Else a copy might have the journal's beginning from after, and a block from before that.
    """
    directory = os.open(root, os.O_RDONLY)
    try:
        fcntl.ioctl(directory, EXT4_IOC_CHECKPOINT, bytes(4))
    finally:
        os.close(directory)


def _grow(disk: Disk, spec: GuestSpec) -> None:
    """Let the disk and its file system be as large as declared; one cut short is begun again at the next start.

    Not while it is mounted, as cloud-init does: that takes a privilege which root has not everywhere.
    """
    if disk.image.stat().st_size > spec.disk_bytes:
        return
    checked = subprocess.run(["e2fsck", "-p", disk.image], capture_output=True, text=True, check=False)
    if checked.returncode > MENDED:
        raise DriverError(f"guest {spec.vmid}: check of its disk failed: {checked.stdout.strip()[-500:]}")
    os.truncate(disk.image, spec.disk_bytes)
    # Forced, as it else wants every block looked at first.
    _command("resize2fs", "-f", disk.image, guest=spec.vmid, what="growth of its file system")


def _await_release(disk: Disk) -> None:
    """Wait until no device has the disk: two of them would spoil it. Raises DeadlineExceeded."""

    def released() -> bool:
        if held := [name for name, file in loop.devices().items() if file == str(disk.image)]:
            raise NotYet(f"{held[0]} has it")
        return True

    poll(f"release of {disk.image}", released, timeout_s=RELEASE_TIMEOUT_S, interval_s=0.01)


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
        with self._new_home(vmid) as disk:
            _copy(image, disk.image, vmid)

    def clone_disk(self, source_vmid: int, vmid: int) -> None:
        """Copy the source's disk, frozen meanwhile."""
        with self._lock(source_vmid):
            source = self._disk(source_vmid)
            with self._new_home(vmid) as disk, self._still(source_vmid):
                _copy(source.image, disk.image, vmid)

    def delete_disk(self, vmid: int) -> None:
        """Remove everything of `vmid`."""
        with self._lock(vmid):
            self._require_stopped(vmid, "deletion of its disk")
            disk = self._disk(vmid)
            # Renamed first: a removal cut short must not leave half a disk that looks whole.
            doomed = disk.home.with_name(f"{vmid}.deleted")
            shutil.rmtree(doomed, ignore_errors=True)
            disk.home.rename(doomed)
            shutil.rmtree(doomed)

    def snapshot(self, vmid: int, name: str) -> None:
        """Copy the disk, frozen meanwhile."""
        with self._lock(vmid):
            disk = self._disk(vmid)
            target, unfinished = disk.snapshots / name, disk.snapshots / f".{name}"
            if target.exists():
                raise DriverError(f"guest {vmid}: snapshot {name} exists already: delete it first")
            disk.snapshots.mkdir(exist_ok=True)
            with self._still(vmid):
                _copy(disk.image, unfinished, vmid)
            unfinished.rename(target)

    def rollback(self, vmid: int, name: str) -> None:
        """Replace the disk by a copy of the snapshot, in one step."""
        with self._lock(vmid):
            self._require_stopped(vmid, f"rollback to {name}")
            disk = self._disk(vmid)
            source, new = disk.snapshots / name, disk.home / "disk.new"
            if not source.is_file():
                raise DriverError(f"guest {vmid}: there is no snapshot {name}")
            _copy(source, new, vmid)
            new.replace(disk.image)

    def delete_snapshot(self, vmid: int, name: str) -> None:
        """Remove the snapshot's copy."""
        with self._lock(vmid):
            source = self._disk(vmid).snapshots / name
            if not source.is_file():
                raise DriverError(f"guest {vmid}: there is no snapshot {name}")
            source.unlink()

    # -- power

    def start(self, spec: GuestSpec) -> None:
        """Prepare the root as cloud-init would, and boot; init runs when this returns."""
        with self._lock(spec.vmid):
            self._require_stopped(spec.vmid, "start")
            disk = self._disk(spec.vmid)
            root = self._mount_root(spec, disk)
            try:
                self._prepare(spec, disk, root)
                running = self._launch(spec, disk, root)
            except BaseException:
                self._unmount(disk, root)
                raise
            threading.Thread(
                target=self._follow, args=(running, disk, root), name=f"guest-{spec.vmid}", daemon=True
            ).start()
            try:
                poll("init", lambda: self._init_is_up(running), timeout_s=START_TIMEOUT_S, interval_s=0.02)
            except DeadlineExceeded as error:
                self.stop(spec.vmid)
                raise DriverError(f"guest {spec.vmid}: start failed: {error}; {_complaint(disk.lxc_log)}") from error
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
            self._lxc_command("lxc-stop", vmid, "--kill", what="stop", may_fail=True)
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
        mark = self._disk(vmid).unplugged / cable
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
        try:
            if limit is None:
                raise FileNotFoundError("the machine has no memory cgroup")
            limit.write_text(str(memory_mib * 2**20))
        except OSError as error:
            raise DriverError(f"guest {vmid}: change of memory to {memory_mib} MiB failed: {error}") from error

    def set_cpu_units(self, vmid: int, cpu_units: int) -> None:
        """Write the cgroup's weight."""
        self._require_running(vmid, "change of weight")
        try:
            self._cgroup.child(str(vmid)).weigh(cpu_units)
        except OSError as error:
            raise DriverError(f"guest {vmid}: change of weight to {cpu_units} failed: {error}") from error

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
        listing = _command(
            "nsenter",
            f"--net=/proc/{pid}/ns/net",
            "ip",
            "-j",
            "address",
            guest=vmid,
            what="list of interfaces",
        )
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

    def _disk(self, vmid: int) -> Disk:
        disk = Disk(self._guests / str(vmid))
        if not disk.image.is_file():
            raise DriverError(f"guest {vmid}: it has no disk at {disk.home}")
        return disk

    @contextmanager
    def _lock(self, vmid: int) -> Iterator[None]:
        with self._guard:
            lock = self._locks.setdefault(vmid, threading.RLock())
        with lock:
            yield

    @contextmanager
    def _new_home(self, vmid: int) -> Iterator[Disk]:
        """Make a disk beside its place and move it there when it is whole."""
        home, partial = self._guests / str(vmid), self._guests / f"{vmid}.partial"
        with self._lock(vmid):
            if home.exists():
                raise DriverError(f"guest {vmid}: it has a disk already at {home}")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            try:
                yield Disk(partial)
            except OSError as error:
                shutil.rmtree(partial, ignore_errors=True)
                raise DriverError(f"guest {vmid}: making its disk failed: {error}") from error
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
            _command("sync", "--file-system", root, guest=vmid, what="writing of its disk")
            try:
                _empty_journal(root)
            except OSError as error:
                raise DriverError(f"guest {vmid}: writing of its disk failed: {error}") from error
            yield
        finally:
            if state == "running":
                self.resume(vmid)

    def _root(self, vmid: int) -> Path:
        return self._run / "roots" / str(vmid)

    def _mount_root(self, spec: GuestSpec, disk: Disk) -> Path:
        """Put the disk in its place, as large as it is declared."""
        root = self._root(spec.vmid)
        root.mkdir(parents=True, exist_ok=True)
        try:
            _await_release(disk)
            _grow(disk, spec)
            device = loop.attach(disk.image)
            try:
                namespace.mount(str(device), root, "ext4", options=MOUNT_OPTIONS)
            finally:
                loop.release(device)
        except (OSError, DeadlineExceeded) as error:
            raise DriverError(f"guest {spec.vmid}: mount of its disk failed: {error}") from error
        return root

    def _unmount(self, disk: Disk, root: Path) -> None:
        """Returns when nothing more is written to the disk; raises OSError and DeadlineExceeded."""
        if root.is_mount():
            namespace.unmount(root)
        _await_release(disk)
        if root.is_dir():
            root.rmdir()

    def _prepare(self, spec: GuestSpec, disk: Disk, root: Path) -> None:
        script = render_preparation(spec, first_boot=not disk.booted.exists())
        devices = root / "dev"
        devices.mkdir(exist_ok=True)
        namespace.mount("/dev", devices, flags=namespace.MS_BIND)
        try:
            _command("chroot", root, "/bin/sh", "-s", guest=spec.vmid, what="preparation", stdin=script)
        finally:
            namespace.unmount(devices)
        disk.booted.touch()
        disk.unplugged.mkdir(exist_ok=True)
        for nic in spec.nics:
            mark = disk.unplugged / cable_name(spec.vmid, nic.index)
            if nic.link_down:
                mark.touch()
            else:
                mark.unlink(missing_ok=True)
        # LXC's arguments: guest, "net", "up", type, bridge, cable.
        marks = shlex.quote(str(disk.unplugged))
        disk.cable_script.write_text(f'#!/bin/sh\nif [ -e {marks}/"$6" ]; then exec ip link set "$6" down; fi\n')
        disk.cable_script.chmod(0o700)

    def _launch(self, spec: GuestSpec, disk: Disk, root: Path) -> _Running:
        config = self._lxc / str(spec.vmid) / "config"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(
            render_config(spec, disk, root, cgroup=self._cgroup, lxcfs=self._lxcfs, cores=os.cpu_count() or spec.cores)
        )
        disk.lxc_log.unlink(missing_ok=True)
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

    def _follow(self, running: _Running, disk: Disk, root: Path) -> None:
        """Wait for the guest's end, whoever caused it, and put its things away; LXC follows reboots."""
        vmid = running.spec.vmid
        running.process.wait()
        try:
            self._unmount(disk, root)
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
            log = self._guests / str(running.spec.vmid) / "lxc.log"
            raise DriverError(f"guest {running.spec.vmid}: start failed: {_complaint(log)}")
        state = self._lxc_command("lxc-info", running.spec.vmid, "-sH", what="start", may_fail=True).strip()
        if state != "RUNNING":
            raise NotYet(f"state {state}")
        return True

    def _freeze(self, vmid: int, frozen: bool) -> None:
        try:
            self._cgroup.child(str(vmid)).freeze(frozen)
        except (OSError, DeadlineExceeded) as error:
            raise DriverError(f"guest {vmid}: {'suspend' if frozen else 'resume'} failed: {error}") from error

    def _lxc_command(self, tool: str, vmid: int, *arguments: str, what: str, may_fail: bool = False) -> str:
        argv = [tool, f"--lxcpath={self._lxc}", f"--name={vmid}", *arguments]
        if may_fail:
            return subprocess.run(argv, capture_output=True, text=True, check=False).stdout
        return _command(*argv, guest=vmid, what=what)


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
