"""The lab's hypervisor: owns the VMs and does to them, through a driver, what Proxmox VE would.

Everything that takes long is a task in a thread of its own and answers a UPID. Refusals and task errors are in
PVE's words (qemu-server, pve-guest-common).
"""

import re
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface
from pathlib import Path

from lab import reconfiguration, storage, vmconfig
from lab.agent import Agent
from lab.driver import Driver, DriverError, GuestStatus
from lab.host import Meter
from lab.inventory import ConfigLocks, Inventory, Machine
from lab.paths import Paths
from lab.refusal import Refusal, invalid
from lab.storage import Download, Storage
from lab.tasks import Log, Tasks
from lab.vmconfig import Config, Drive, Net, Value

NODE = "pve"
ROOT = "root@pam"
STOPPED = GuestStatus("stopped")
SHUTDOWN_TIMEOUT_S = 60.0  # PVE's, where a request names none
# A snapshot keeps the rest of the configuration; these describe the VM as it is now.
NOT_IN_SNAPSHOT = frozenset({"lock", "description", "template"})
NOT_IN_CLONE = frozenset({"lock", "parent", "template"})


@dataclass(frozen=True)
class Bridge:
    """A bridge of the node and the node's own address on it."""

    name: str
    address: IPv4Interface


BRIDGES = (Bridge("vmbr1", IPv4Interface("172.31.0.1/24")), Bridge("vmbr2", IPv4Interface("10.20.20.1/24")))


class Hypervisor:
    """One node and its VMs.

    Reads `paths.state` and settles what a killed daemon left half done, so the driver must be ready for use.
    What Proxmox VE refuses raises Refusal, with its status and words.
    """

    def __init__(
        self,
        paths: Paths,
        driver: Driver,
        *,
        node: str = NODE,
        bridges: tuple[Bridge, ...] = BRIDGES,
        lock_timeout_s: float = 10.0,
    ) -> None:
        self.node = node
        self.bridges = bridges
        self.state = paths.state
        self.inventory = Inventory(paths.state / "qemu-server", node)
        self.tasks = Tasks(paths.state / "tasks", node)
        self.storage = Storage(paths.state / "storage", self.inventory)
        self.agent = Agent(driver, self.inventory)
        self.meter = Meter()
        self._driver = driver
        self._configs = ConfigLocks(lock_timeout_s)
        self._sources = ConfigLocks(None)  # clones of one source take turns
        self._closing = threading.Event()
        self._recover()

    # ------------------------------------------------------------------ the daemon's own calls

    def autostart(self) -> dict[int, str]:
        """Start the VMs with `onboot`, in the order of `startup`; returns each one's exit status."""
        machines = [machine for machine in self.inventory if machine.config.get("onboot")]
        outcome = {}
        for machine in sorted(machines, key=lambda one: (vmconfig.startup_order(one.config)[0], one.vmid)):
            if machine.is_template or self._closing.is_set():
                continue
            task = self.tasks.wait(self.start(machine.vmid, ROOT))
            outcome[machine.vmid] = task.exitstatus or ""
            self._closing.wait(vmconfig.startup_order(machine.config)[1])
        return outcome

    def power_off_all(self) -> None:
        """Cut every guest's power, all at once; raises the first DriverError after trying all."""
        with ThreadPoolExecutor(max_workers=16) as pool:
            stops = [pool.submit(self._driver.stop, one.vmid) for one in self.inventory if _has_disk(one)]
        for stop in stops:
            stop.result()

    def close(self, timeout_s: float = 10.0) -> None:
        """Take no new task and let running ones end; one that does not in `timeout_s` is later "interrupted"."""
        self._closing.set()
        self.tasks.close(timeout_s)

    # ------------------------------------------------------------------ reading

    def status(self, machine: Machine) -> GuestStatus:
        """What is true of a guest now; one that is being made is stopped. Raises DriverError."""
        return self._driver.status(machine.vmid) if _has_disk(machine) else STOPPED

    # ------------------------------------------------------------------ making and removing

    def create(self, vmid: int, options: Mapping[str, Value], start: bool, user: str) -> str:
        """Make a VM; its root disk is imported by the task `qmcreate`."""
        failed = f"unable to create VM {vmid} -"
        if vmid in self.inventory:
            raise Refusal(500, f"{failed} VM {vmid} already exists on node '{self.node}'")
        drives, image = self._resolve_drives(vmid, {}, options)
        config: dict[str, Value] = {**options, **drives, **self._cards(vmconfig.nets(options))}
        config.setdefault("smbios1", f"uuid={uuid.uuid4()}")
        config.setdefault("vmgenid", str(uuid.uuid4()))
        config["meta"] = f"ctime={int(time.time())}"
        reconfiguration.check(Machine(vmid, config), {"boot": options.get("boot", "")}, ())
        if "boot" not in config and (order := _boot_order(config)):
            config["boot"] = order
        machine = Machine(vmid, config).with_lock("create")
        self.inventory.add(machine, f"{failed} VM {vmid} already exists on node '{self.node}'")

        def work(log: Log) -> None:
            with self._made_or_gone(vmid, failed):
                if image:
                    log(f"importing disk image '{image.name}' as root disk of VM {vmid}")
                    self._driver.create_disk(vmid, image)
                self.inventory.put(machine.with_lock(None))
            if start:
                self._start_guest(vmid)

        return self.tasks.start("qmcreate", str(vmid), user, work)

    def clone(
        self, vmid: int, newid: int, *, name: str | None, full: bool | None, description: str | None, user: str
    ) -> str:
        """Make VM `newid` with a disk that begins as `vmid`'s; clones of one source take turns."""
        source = self.inventory.get(vmid)
        source.check_lock()
        taken = f"unable to create VM {newid}: config file already exists"
        if newid in self.inventory:
            raise Refusal(500, taken)
        root = vmconfig.root_drive(source.config)
        if root and full is False and not source.is_template:
            raise Refusal(500, f"Linked clone feature is not supported for '{root[1].volume}' ({root[0]})")
        config = {key: value for key, value in source.config.items() if key not in NOT_IN_CLONE}
        config |= self._cards({index: replace(net, mac=None) for index, net in vmconfig.nets(config).items()})
        for key, drive in vmconfig.drives(source.config):
            volume = re.sub(rf"\b(?:vm|base)-{vmid}-", f"vm-{newid}-", drive.volume)
            config[key] = replace(drive, volume=volume).text
        config["name"] = name or f"Copy-of-VM-{source.config.get('name') or vmid}"
        config["smbios1"] = f"uuid={uuid.uuid4()}"
        config["vmgenid"] = str(uuid.uuid4())
        config["meta"] = f"ctime={int(time.time())}"
        if description is not None:
            config["description"] = description
        machine = Machine(newid, config).with_lock("clone")
        self.inventory.add(machine, taken)

        def work(log: Log) -> None:
            with self._made_or_gone(newid, "clone failed:"):
                if root:
                    with self._sources.hold(vmid):
                        self.inventory.get(vmid)  # the source may be gone by now
                        log(f"create clone of drive {root[0]} ({root[1].volume})")
                        self._driver.clone_disk(vmid, newid)
                self.inventory.put(machine.with_lock(None))

        return self.tasks.start("qmclone", str(vmid), user, work)

    def make_template(self, vmid: int, user: str) -> str:
        """Turn a stopped VM without snapshots into a template."""
        machine = self.inventory.get(vmid)
        machine.check_lock()
        if machine.snapshots:
            raise Refusal(500, "unable to create template, because VM contains snapshots")
        if machine.is_template:
            raise Refusal(500, "you can't convert a template to a template")
        if self.status(machine).state != "stopped":
            raise Refusal(500, "you can't convert a VM to template if VM is running")

        def work(log: Log) -> None:
            with self._configs.hold(vmid):
                machine = self._unlocked(vmid)
                if self.status(machine).state != "stopped":
                    raise Refusal(500, "you can't convert a VM to template if VM is running")
                config: dict[str, Value] = {**machine.config, "template": 1}
                if root := vmconfig.root_drive(config):
                    config[root[0]] = str(config[root[0]]).replace(f":vm-{vmid}-", f":base-{vmid}-")
                    log(f"renamed root disk to {config[root[0]]}")
                self.inventory.put(replace(machine, config=config))

        return self.tasks.start("qmtemplate", str(vmid), user, work)

    def destroy(self, vmid: int, user: str) -> str:
        """Remove a stopped VM, its disk and its snapshots."""
        machine = self.inventory.get(vmid)
        _check_protection(machine, f"can't remove VM {vmid}")
        if self.status(machine).state != "stopped":
            raise Refusal(500, f"VM {vmid} is running - destroy failed")

        def work(log: Log) -> None:
            with self._sources.hold(vmid), self._configs.hold(vmid):
                machine = self._unlocked(vmid)
                if self.status(machine).state != "stopped":
                    raise Refusal(500, f"VM {vmid} is running - destroy failed")
                if root := vmconfig.root_drive(machine.config):
                    log(f"removing disk {root[1].volume}")
                    self.inventory.put(machine.with_lock("destroyed"))
                    try:
                        self._driver.delete_disk(vmid)
                    except DriverError:
                        self.inventory.put(machine)
                        raise
                self.inventory.remove(vmid)

        return self.tasks.start("qmdestroy", str(vmid), user, work)

    # ------------------------------------------------------------------ configuration

    def configure(
        self,
        vmid: int,
        updates: Mapping[str, Value],
        *,
        deletes: Collection[str] = (),
        reverts: Collection[str] = (),
        digest: str | None = None,
    ) -> None:
        """Change a configuration now; what a running guest cannot take waits for its next start."""
        self.inventory.get(vmid)
        with self._configs.hold(vmid):
            machine = self._unlocked(vmid)
            if digest and digest != machine.digest:
                raise Refusal(500, "checksum mismatch (file change by other user?)")
            pending = {key: value for key, value in machine.pending.items() if key not in reverts}
            machine = replace(machine, pending=pending)
            drives, image = self._resolve_drives(vmid, machine.config, updates)
            updates = {**updates, **drives, **self._cards(vmconfig.nets(updates))}
            reconfiguration.check(machine, updates, deletes)
            if image:
                with suppress(DriverError):  # what an import left that was killed before this file was written
                    self._driver.delete_disk(vmid)
                self._driver.create_disk(vmid, image)
            running = self.status(machine).state != "stopped"
            change = reconfiguration.plan(machine, updates, deletes, running)
            for index, up in change.links_up.items():
                self._driver.set_link(vmid, index, up)
            if change.memory_mib is not None:
                self._driver.set_memory(vmid, change.memory_mib)
            if change.cpu_units is not None:
                self._driver.set_cpu_units(vmid, change.cpu_units)
            self.inventory.put(change.machine)

    def configure_task(
        self,
        vmid: int,
        updates: Mapping[str, Value],
        *,
        deletes: Collection[str],
        reverts: Collection[str],
        digest: str | None,
        user: str,
    ) -> str:
        """Change a configuration by the task `qmconfig`."""
        self.inventory.get(vmid)

        def work(log: Log) -> None:
            log(f"update VM {vmid}: {', '.join(sorted([*updates, *deletes, *reverts]))}")
            self.configure(vmid, updates, deletes=deletes, reverts=reverts, digest=digest)

        return self.tasks.start("qmconfig", str(vmid), user, work)

    def resize(self, vmid: int, disk: str, size: str, digest: str | None, user: str) -> str:
        """Declare a disk larger: by `+2G`, or to `4G`; its file system follows at the next start."""
        machine = self.inventory.get(vmid)
        if digest and digest != machine.digest:
            raise Refusal(500, "checksum mismatch (file change by other user?)")
        machine.check_lock()
        if disk not in machine.config:
            raise Refusal(500, f"disk '{disk}' does not exist")
        if Drive.parse(str(machine.config[disk])).is_cdrom:
            raise Refusal(500, "you can't resize a cdrom")

        def work(log: Log) -> None:
            with self._configs.hold(vmid):
                machine = self._unlocked(vmid)
                drive = Drive.parse(str(machine.config[disk]))
                wanted = vmconfig.parse_size(size.removeprefix("+")) + (drive.size_bytes if size[0] == "+" else 0)
                if wanted < drive.size_bytes:
                    raise Refusal(500, "shrinking disks is not supported")
                log(f"size of {disk}: {vmconfig.format_size(wanted)}")
                config = {**machine.config, disk: drive.with_size(wanted).text}
                self.inventory.put(replace(machine, config=config))

        return self.tasks.start("resize", str(vmid), user, work)

    # ------------------------------------------------------------------ power

    def start(self, vmid: int, user: str) -> str:
        """Boot a guest with its next configuration."""
        self.inventory.get(vmid)

        def work(_: Log) -> None:
            self._start_guest(vmid)

        return self.tasks.start("qmstart", str(vmid), user, work)

    def stop(self, vmid: int, overrule_shutdown: bool, user: str) -> str:
        """Cut a guest's power; with `overrule_shutdown` also from under a shutdown that is under way."""
        self.inventory.get(vmid).check_lock()

        def work(log: Log) -> None:
            if overrule_shutdown and self.tasks.running("qmshutdown", str(vmid)):
                log("overruling the active shutdown")
                self._driver.stop(vmid)
                return
            with self._configs.hold(vmid):
                self._unlocked(vmid)
                self._driver.stop(vmid)

        return self.tasks.start("qmstop", str(vmid), user, work)

    def shutdown(self, vmid: int, timeout_s: float | None, force_stop: bool, user: str) -> str:
        """Ask a guest to power off; with `force_stop` its power is cut when it does not."""
        if self._running(vmid).state == "paused" and not force_stop:
            raise Refusal(500, "VM is paused - cannot shutdown")

        def work(log: Log) -> None:
            with self._configs.hold(vmid):
                self._power_down(vmid, timeout_s, force_stop, log)

        return self.tasks.start("qmshutdown", str(vmid), user, work)

    def reboot(self, vmid: int, timeout_s: float | None, user: str) -> str:
        """Shut a guest down and start it with its next configuration."""
        self._running(vmid)

        def work(log: Log) -> None:
            with self._configs.hold(vmid):
                self._power_down(vmid, timeout_s, force_stop=False, log=log)
            self._start_guest(vmid)

        return self.tasks.start("qmreboot", str(vmid), user, work)

    def reset(self, vmid: int, user: str) -> str:
        """Cut a guest's power and start it at once as it was configured."""
        self._running(vmid)

        def work(_: Log) -> None:
            with self._configs.hold(vmid):
                machine = self._unlocked(vmid)
                self._driver.stop(vmid)
                self._boot(machine)

        return self.tasks.start("qmreset", str(vmid), user, work)

    def suspend(self, vmid: int, user: str) -> str:
        """Freeze a guest."""
        self._running(vmid)

        def work(_: Log) -> None:
            with self._configs.hold(vmid):
                self._unlocked(vmid)
                self._driver.suspend(vmid)

        return self.tasks.start("qmsuspend", str(vmid), user, work)

    def resume(self, vmid: int, user: str) -> str:
        """Let a frozen guest go on."""
        self._running(vmid)

        def work(_: Log) -> None:
            with self._configs.hold(vmid):
                self._driver.resume(vmid)

        return self.tasks.start("qmresume", str(vmid), user, work)

    # ------------------------------------------------------------------ snapshots

    def snapshot(self, vmid: int, name: str, description: str, user: str) -> str:
        """Keep disk and configuration under `name`."""
        self.inventory.get(vmid)
        if name.lower() in ("current", "pending"):
            raise Refusal(500, f"unable to use snapshot name '{name}' (reserved name)")

        def work(log: Log) -> None:
            with self._configs.hold(vmid):
                machine = self._unlocked(vmid)
                if machine.is_template:
                    raise Refusal(500, "you can't take a snapshot if it's a template")
                if name in machine.snapshots:
                    raise Refusal(500, f"snapshot name '{name}' already used")
                kept = {key: value for key, value in machine.config.items() if key not in NOT_IN_SNAPSHOT}
                kept |= {"snaptime": int(time.time()), "description": description}
                self._put_snapshot(machine, name, {**kept, "snapstate": "prepare"}, "snapshot")
                log(f"snapshotting disk of VM {vmid}")
                try:
                    self._driver.snapshot(vmid, name)
                except DriverError:
                    self.inventory.put(machine)
                    raise
                config = {**machine.config, "parent": name}
                self.inventory.put(replace(machine, config=config, snapshots={**machine.snapshots, name: kept}))

        return self.tasks.start("qmsnapshot", str(vmid), user, work)

    def describe_snapshot(self, vmid: int, name: str, description: str) -> None:
        """Change a snapshot's description."""
        with self._configs.hold(vmid):
            machine = self.inventory.get(vmid)
            kept = {**snapshot_of(machine, name), "description": description}
            self.inventory.put(replace(machine, snapshots={**machine.snapshots, name: kept}))

    def delete_snapshot(self, vmid: int, name: str, user: str) -> str:
        """Forget a snapshot."""
        self.inventory.get(vmid)

        def work(log: Log) -> None:
            with self._configs.hold(vmid):
                machine = self._unlocked(vmid)
                kept = snapshot_of(machine, name)
                if machine.is_template:
                    raise Refusal(500, "you can't delete a snapshot if vm is a template")
                self._put_snapshot(machine, name, {**kept, "snapstate": "delete"}, "snapshot-delete")
                log(f"deleting snapshot '{name}' of VM {vmid}")
                try:
                    self._driver.delete_snapshot(vmid, name)
                except DriverError:
                    self.inventory.put(machine)
                    raise
                self.inventory.put(_without_snapshot(machine, name))

        return self.tasks.start("qmdelsnapshot", str(vmid), user, work)

    def rollback(self, vmid: int, name: str, start: bool, user: str) -> str:
        """Put disk and configuration back to a snapshot; a running guest's power is cut first."""
        self.inventory.get(vmid)

        def work(log: Log) -> None:
            with self._configs.hold(vmid):
                machine = self._unlocked(vmid)
                if machine.is_template:
                    raise Refusal(500, "you can't rollback if vm is a template")
                kept = snapshot_of(machine, name)
                if state := kept.get("snapstate"):
                    raise Refusal(500, f"unable to rollback to incomplete snapshot (snapstate = {state})")
                self._put_snapshot(machine, name, {**kept, "snapstate": "rollback"}, "rollback")
                log(f"rolling VM {vmid} back to snapshot '{name}'")
                try:
                    self._roll_back(machine, name)
                except DriverError:
                    self.inventory.put(machine)
                    raise
            if start:
                self._start_guest(vmid)

        return self.tasks.start("qmrollback", str(vmid), user, work)

    # ------------------------------------------------------------------ storage

    def download(self, name: str, wanted: Download, user: str) -> str:
        """Fetch a file into a storage."""
        self.storage.check_download(name, wanted)

        def work(log: Log) -> None:
            self.storage.download(wanted, log)

        return self.tasks.start("download", wanted.filename, user, work)

    def remove_volume(self, volid: str, user: str) -> str:
        """Delete a file of a storage."""
        self.storage.check_removal(volid)

        def work(log: Log) -> None:
            self.storage.remove(volid)
            log(f"Removed volume '{volid}'")

        return self.tasks.start("imgdel", f"@{volid.partition(':')[0]}", user, work)

    # ------------------------------------------------------------------ parts

    def _unlocked(self, vmid: int) -> Machine:
        machine = self.inventory.get(vmid)
        machine.check_lock()
        return machine

    def _running(self, vmid: int) -> GuestStatus:
        """The status of a VM that must be running and unlocked."""
        machine = self.inventory.get(vmid)
        status = self.status(machine)
        if status.state == "stopped":
            raise Refusal(500, f"VM {vmid} not running")
        machine.check_lock()
        return status

    def _start_guest(self, vmid: int) -> None:
        with self._configs.hold(vmid):
            machine = self._unlocked(vmid)
            if machine.is_template:
                raise Refusal(500, "you can't start a vm if it's a template")
            if self.status(machine).state != "stopped":
                raise Refusal(500, f"VM {vmid} already running")
            if machine.pending:
                machine = replace(machine, config=machine.next_config, pending={})
                self.inventory.put(machine)
            self._boot(machine)

    def _boot(self, machine: Machine) -> None:
        if vmconfig.root_drive(machine.config) is None:
            raise Refusal(500, f"VM {machine.vmid} has no root disk: a lab guest cannot start without one")
        try:
            spec = vmconfig.guest_spec(machine.vmid, machine.config)
        except ValueError as error:
            raise Refusal(500, str(error).strip()) from error
        known = {bridge.name for bridge in self.bridges}
        for nic in spec.nics:
            if nic.bridge not in known:
                raise Refusal(500, f"bridge '{nic.bridge}' does not exist")
        self._driver.start(spec)

    def _power_down(self, vmid: int, timeout_s: float | None, force_stop: bool, log: Log) -> None:
        machine = self._unlocked(vmid)
        if self.status(machine).state == "paused":
            if not force_stop:
                raise Refusal(500, "VM is paused - cannot shutdown")
            log("VM is paused - stop instead of shutdown")
            self._driver.stop(vmid)
            return
        try:
            self._driver.shutdown(vmid, SHUTDOWN_TIMEOUT_S if timeout_s is None else timeout_s)
        except DriverError as error:
            if not force_stop:
                raise Refusal(500, f"VM quit/powerdown failed - {error}") from error
            log(f"VM still running - terminating now: {error}")
            self._driver.stop(vmid)

    def _put_snapshot(self, machine: Machine, name: str, kept: Config, lock: str) -> None:
        self.inventory.put(replace(machine.with_lock(lock), snapshots={**machine.snapshots, name: kept}))

    def _roll_back(self, machine: Machine, name: str) -> None:
        self._driver.stop(machine.vmid)
        self._driver.rollback(machine.vmid, name)
        config = {
            key: value for key, value in machine.snapshots[name].items() if key not in ("snaptime", "description")
        }
        config["parent"] = name
        if "description" in machine.config:
            config["description"] = machine.config["description"]
        self.inventory.put(replace(machine, config=config, pending={}))

    @contextmanager
    def _made_or_gone(self, vmid: int, failed: str) -> Iterator[None]:
        """Make a new VM inside; when that fails, disk and configuration go and the error says what failed."""
        try:
            yield
        except (Refusal, DriverError, OSError) as error:
            self._unmake(vmid)
            raise Refusal(500, f"{failed} {error}") from error

    def _unmake(self, vmid: int) -> None:
        with suppress(DriverError):  # the disk may not have come to be
            self._driver.delete_disk(vmid)
        self.inventory.remove(vmid)

    def _cards(self, nets: Mapping[int, Net]) -> dict[str, Value]:
        """The `netN` values of `nets`; one without a MAC address gets one that no other VM has."""
        taken = self.inventory.macs()
        cards: dict[str, Value] = {}
        for index, net in nets.items():
            mac = net.mac or vmconfig.new_mac(taken)
            taken.add(mac)
            cards[f"net{index}"] = replace(net, mac=mac).text
        return cards

    def _resolve_drives(
        self, vmid: int, current: Config, options: Mapping[str, Value]
    ) -> tuple[dict[str, Value], Path | None]:
        """Turn the drives asked for into volumes, and find the image to import as root disk."""
        resolved: dict[str, Value] = {}
        image: Path | None = None
        for key, drive in vmconfig.drives(options):
            if drive.storage:
                self.storage.store(drive.storage)
            if drive.is_cloudinit:
                self._check_images(drive)
                volume = f"{storage.IMAGES}:vm-{vmid}-cloudinit"
                resolved[key] = replace(drive, volume=volume, options={**drive.options, "media": "cdrom"}).text
            elif drive.new_size_gib is not None:
                self._check_images(drive)
                source = drive.options.get("import-from")
                if source is None or image or vmconfig.root_drive(current):
                    raise invalid({key: "a lab guest has one disk, its root, and begins it with import-from"})
                image = self.storage.import_image(source)
                rest = {name: value for name, value in drive.options.items() if name not in ("import-from", "format")}
                fresh = Drive(f"{storage.IMAGES}:vm-{vmid}-disk-0", rest)
                declared = int(drive.new_size_gib * vmconfig.SIZE_UNITS["G"])
                resolved[key] = fresh.with_size(max(declared, image.stat().st_size)).text
            elif not drive.is_cdrom:
                self._check_kept(key, drive, current)
            elif drive.storage:
                self.storage.path(drive.volume)
        return resolved, image

    @staticmethod
    def _check_kept(key: str, drive: Drive, current: Config) -> None:
        if key not in current or Drive.parse(str(current[key])).volume != drive.volume:
            raise Refusal(500, f"volume '{drive.volume}' does not exist")

    def _check_images(self, drive: Drive) -> None:
        if drive.storage != storage.IMAGES:
            raise invalid({"storage": f"storage '{drive.storage}' does not support vm images"})

    def _recover(self) -> None:
        """Settle what a killed daemon left locked: unmake what was half made, end what was half done."""
        for machine in self.inventory:
            if machine.lock in ("create", "clone", "destroyed"):
                self._unmake(machine.vmid)
            for name, kept in machine.snapshots.items():
                if kept.get("snapstate") == "rollback":
                    self._end_rollback(machine.with_lock(None), name)
                elif "snapstate" in kept:
                    with suppress(DriverError):  # it may never have been made, or be gone already
                        self._driver.delete_snapshot(machine.vmid, name)
                    self.inventory.put(_without_snapshot(machine.with_lock(None), name))

    def _end_rollback(self, machine: Machine, name: str) -> None:
        kept = {key: value for key, value in machine.snapshots[name].items() if key != "snapstate"}
        machine = replace(machine, snapshots={**machine.snapshots, name: kept})
        with suppress(DriverError):  # stays locked, as PVE leaves it: the next daemon tries again
            self._roll_back(machine, name)


def snapshot_of(machine: Machine, name: str) -> Config:
    """The configuration kept under a snapshot's name; raises PVE's refusal when there is none."""
    if name not in machine.snapshots:
        raise Refusal(500, f"snapshot '{name}' does not exist")
    return machine.snapshots[name]


def _without_snapshot(machine: Machine, name: str) -> Machine:
    """The VM without a snapshot; what came after it now comes after its parent."""
    parent = machine.snapshots[name].get("parent")

    def adopt(config: Config) -> Config:
        if config.get("parent") != name:
            return config
        orphan = {key: value for key, value in config.items() if key != "parent"}
        return orphan if parent is None else {**orphan, "parent": parent}

    snapshots = {key: adopt(kept) for key, kept in machine.snapshots.items() if key != name}
    return replace(machine, config=adopt(machine.config), snapshots=snapshots)


def _has_disk(machine: Machine) -> bool:
    return machine.lock not in ("create", "clone") and vmconfig.root_drive(machine.config) is not None


def _check_protection(machine: Machine, refused: str) -> None:
    if machine.config.get("protection"):
        raise Refusal(500, f"{refused} - protection mode enabled")


def _boot_order(config: Config) -> str:
    """PVE's default: the first disk, the first CD drive, the first NIC."""
    found: dict[bool, str] = {}
    for key, drive in vmconfig.drives(config):
        found.setdefault(drive.is_cdrom, key)
    order = [found[cdrom] for cdrom in (False, True) if cdrom in found]
    order += [f"net{index}" for index in vmconfig.nets(config)][:1]
    return f"order={';'.join(order)}" if order else ""
