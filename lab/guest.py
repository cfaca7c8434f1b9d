"""Runs guests as LXC system containers: overlay disks on a shared image, power, cables, freezer, snapshots."""

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

from lab import namespace, network
from lab.attach import attach_command
from lab.cgroup import Cgroup, hierarchies, shares_of
from lab.driver import DriverError, ExecResult, GuestSpec, GuestStatus, Interface, Nic
from lab.paths import Paths
from provisioning.poll import DeadlineExceeded, NotYet, poll

# Directories of a guest that lie on the machine's own file system instead of the overlay, and why:
# containerd makes overlays of its own, which cannot lie on one; kubelet mounts volumes there; etcd, MySQL and
# NDB write with O_DIRECT and fsync; NFS-Ganesha exports /mnt by file handle, which an overlay does not give.
PLAIN_DIRECTORIES = (
    "var/lib/containerd",
    "var/lib/kubelet",
    "var/lib/etcd",
    "var/lib/mysql",
    "var/lib/mysql-cluster",
    "var/lib/ndb",
    "mnt",
)
FIRST_NIC = 18  # a virtio card of a Proxmox VM is ens18, the second ens19
POWEROFF_SIGNAL = signal.SIGRTMIN + 3  # systemd(1): halt; the same one `lxc-stop` sends
START_TIMEOUT_S = 30.0
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
    for directory in PLAIN_DIRECTORIES:
        lines.append(f"lxc.mount.entry = {home.plain(directory)} {directory} none bind,create=dir 0 0")
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
    """Where a guest's disk lies: `image` (shared, read-only) below `current`, which holds what differs."""

    home: Path

    @property
    def image(self) -> Path:
        """The raw file-system image; a hard link, so the last guest that needs it keeps it."""
        return self.home / "image.raw"

    @property
    def current(self) -> Path:
        """Everything the guest has written: `upper` and one directory for each plain directory."""
        return self.home / "disk"

    @property
    def upper(self) -> Path:
        """The overlay's upper directory."""
        return self.current / "upper"

    @property
    def work(self) -> Path:
        """The overlay's work directory: the kernel's, never copied."""
        return self.home / "work"

    @property
    def snapshots(self) -> Path:
        """One copy of `current` for each snapshot."""
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

    def plain(self, directory: str) -> Path:
        """Place one of PLAIN_DIRECTORIES."""
        return self.current / directory.replace("/", "-")


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
    """Copy a tree with owners, times, device nodes and the overlay's own attributes; holes stay holes."""
    _command("cp", "-a", "--reflink=auto", "--sparse=always", source, target, guest=guest, what="disk copy")


def _copy_over(source: Path, before: Path, target: Path, guest: int) -> None:
    """Copy a tree likewise; what lies in `before` with the same size and time (ns) is linked from there, not copied.

    So a rollback writes what the guest has changed, and not its gigabytes of images. `before` must go afterwards.
    """
    keeping = ("--archive", "--acls", "--xattrs", "--hard-links", "--sparse", "--numeric-ids", "--modify-window=-1")
    copying = ("rsync", *keeping, f"--link-dest={before}", f"{source}/", f"{target}/")
    _command(*copying, guest=guest, what="disk copy")


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
        """Take the image by hard link (by copy from another file system); nobody writes to it."""
        with self._new_home(vmid) as disk:
            try:
                os.link(image, disk.image)
            except OSError:
                shutil.copyfile(image, disk.image)
            disk.upper.mkdir(parents=True)

    def clone_disk(self, source_vmid: int, vmid: int) -> None:
        """Share the source's image and copy what the source has written: for a template, next to nothing."""
        with self._lock(source_vmid):
            source = self._disk(source_vmid)
            with self._new_home(vmid) as disk:
                os.link(source.image, disk.image)
                _copy(source.current, disk.current, vmid)

    def delete_disk(self, vmid: int) -> None:
        """Remove everything of `vmid`; the image goes with the last guest that has it."""
        with self._lock(vmid):
            self._require_stopped(vmid, "deletion of its disk")
            disk = self._disk(vmid)
            # Renamed first: a removal cut short must not leave half a disk that looks whole.
            doomed = disk.home.with_name(f"{vmid}.deleted")
            shutil.rmtree(doomed, ignore_errors=True)
            disk.home.rename(doomed)
            image = (doomed / "image.raw").stat()
            shutil.rmtree(doomed)
            with self._guard:
                if not any(os.path.samestat(image, other.stat()) for other in self._guests.glob("*/image.raw")):
                    self._unmount(self._image_root(image))

    def snapshot(self, vmid: int, name: str) -> None:
        """Copy what the guest has written, frozen meanwhile."""
        with self._lock(vmid):
            disk = self._disk(vmid)
            target, partial = disk.snapshots / name, disk.snapshots / f".{name}"
            if target.exists():
                raise DriverError(f"guest {vmid}: snapshot {name} exists already: delete it first")
            shutil.rmtree(partial, ignore_errors=True)
            disk.snapshots.mkdir(exist_ok=True)
            freeze = self.status(vmid).state == "running"
            if freeze:
                self.suspend(vmid)
            try:
                _copy(disk.current, partial, vmid)
            finally:
                if freeze:
                    self.resume(vmid)
            partial.rename(target)

    def rollback(self, vmid: int, name: str) -> None:
        """Replace what the guest has written by a copy of the snapshot, in one step."""
        with self._lock(vmid):
            self._require_stopped(vmid, f"rollback to {name}")
            disk = self._disk(vmid)
            source, new = disk.snapshots / name, disk.home / "disk.new"
            if not source.is_dir():
                raise DriverError(f"guest {vmid}: there is no snapshot {name}")
            shutil.rmtree(new, ignore_errors=True)
            _copy_over(source, disk.current, new, vmid)
            namespace.exchange(new, disk.current)
            shutil.rmtree(new)

    def delete_snapshot(self, vmid: int, name: str) -> None:
        """Remove the snapshot's copy."""
        with self._lock(vmid):
            source = self._disk(vmid).snapshots / name
            if not source.is_dir():
                raise DriverError(f"guest {vmid}: there is no snapshot {name}")
            shutil.rmtree(source)

    # -- power

    def start(self, spec: GuestSpec) -> None:
        """Prepare the root as cloud-init would, and boot; init runs when this returns."""
        with self._lock(spec.vmid):
            self._require_stopped(spec.vmid, "start")
            disk = self._disk(spec.vmid)
            root = self._mount_root(spec.vmid, disk)
            try:
                self._prepare(spec, disk, root)
                running = self._launch(spec, disk, root)
            except BaseException:
                self._unmount(root)
                raise
            threading.Thread(target=self._follow, args=(running, root), name=f"guest-{spec.vmid}", daemon=True).start()
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
        if not disk.current.is_dir():
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

    def _image_root(self, inode: os.stat_result) -> Path:
        return self._run / "images" / str(inode.st_ino)

    def _mount_root(self, vmid: int, disk: Disk) -> Path:
        with self._guard:
            lower = self._image_root(disk.image.stat())
            if not lower.is_mount():
                lower.mkdir(parents=True, exist_ok=True)
                # mount(8) finds a free loop device and has it released with the mount.
                options = "loop,ro,noload,noatime"
                _command(
                    "mount",
                    "-t",
                    "ext4",
                    "-o",
                    options,
                    disk.image,
                    lower,
                    guest=vmid,
                    what="mount of its image",
                )
        root = self._run / "roots" / str(vmid)
        root.mkdir(parents=True, exist_ok=True)
        disk.work.mkdir(exist_ok=True)
        options = f"lowerdir={lower},upperdir={disk.upper},workdir={disk.work}"
        try:
            namespace.mount("overlay", root, "overlay", options=options)
        except OSError as error:
            raise DriverError(f"guest {vmid}: mount of its root failed: {error}") from error
        return root

    def _unmount(self, root: Path) -> None:
        if root.is_mount():
            namespace.unmount(root)
        if root.is_dir():
            root.rmdir()

    def _prepare(self, spec: GuestSpec, disk: Disk, root: Path) -> None:
        for directory in PLAIN_DIRECTORIES:
            plain, inside = disk.plain(directory), root / directory
            if not plain.exists():
                # As the image has it: owner, mode and content.
                if inside.is_dir() and not inside.is_symlink():
                    _copy(inside, plain, spec.vmid)
                else:
                    plain.mkdir()
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

    def _follow(self, running: _Running, root: Path) -> None:
        """Wait for the guest's end, whoever caused it, and put its things away; LXC follows reboots."""
        vmid = running.spec.vmid
        running.process.wait()
        try:
            self._unmount(root)
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
