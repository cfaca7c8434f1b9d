"""Machines on the hypervisor: the template, and clones of it with the declared shape."""

import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from posixpath import basename
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import requests

from environments.model import Environment, Machine
from provisioning.action import ActionFailed
from provisioning.hypervisor import Hypervisor, HypervisorError, Vm
from provisioning.ssh import Shell

BOOT_TIMEOUT_S = 180
TEMPLATE_TAG = "haproof-template"
Item = TypeVar("Item")


def in_parallel(items: Sequence[Item], work: Callable[[Item], Any]) -> None:
    """Do `work` on all `items` at once; every one ends before the first failure is raised."""
    with ThreadPoolExecutor(max_workers=max(1, len(items))) as pool:
        waiting = [pool.submit(work, item) for item in items]
    for future in waiting:
        future.result()


def refusals(environment: Environment, machines: Iterable[Machine], vms: dict[int, Vm]) -> list[str]:
    """Reasons not to touch this hypervisor: VM ids or names of ours that something else holds. Pure."""
    found = []
    by_name = {vm.name: vm for vm in vms.values()}
    for machine in machines:
        holder = vms.get(machine.vmid)
        # A clone carries its template's tags until it gets its own: one cut off in between is still ours.
        if holder and (holder.name != machine.name or not holder.tags & {environment.tag, TEMPLATE_TAG}):
            found.append(
                f"VM {machine.vmid}, meant for {machine.name}, is “{holder.name}” "
                f"with the tags {', '.join(sorted(holder.tags)) or 'none'} instead of {environment.tag}"
            )
        namesake = by_name.get(machine.name)
        if namesake and namesake.vmid != machine.vmid:
            found.append(f"the name {machine.name} belongs to VM {namesake.vmid}, not to {machine.vmid}")
    template = environment.hypervisor.template
    holder = vms.get(template.vmid)
    if holder and (holder.name != template.name or TEMPLATE_TAG not in holder.tags):
        found.append(f"VM {template.vmid}, meant for the template {template.name}, is “{holder.name}”")
    return found


def desired_config(environment: Environment, machine: Machine, public_key: str) -> dict[str, str]:
    """The configuration that `machine` should have, in the API's words but without MAC addresses. Pure."""
    config = {
        "cores": str(machine.cores),
        "memory": str(machine.memory_mib),
        **({"cpuunits": str(machine.cpu_units)} if machine.cpu_units else {}),
        "onboot": "1",
        "agent": "1",
        "tags": environment.tag,
        "ciuser": environment.ssh.user,
        "sshkeys": quote(public_key.strip() + "\n", safe=""),
    }
    for index, (name, interface) in enumerate(zip(machine.addresses, environment.interfaces(machine), strict=True)):
        network = environment.networks[name]
        config[f"net{index}"] = f"virtio,bridge={network.bridge}"
        gateway = f",gw={network.gateway}" if index == 0 and network.gateway else ""
        config[f"ipconfig{index}"] = f"ip={interface}{gateway}"
    return config


def config_changes(actual: dict[str, Any], desired: dict[str, str]) -> dict[str, str]:
    """Those of `desired` that `actual` does not say; a network card keeps the MAC address it has. Pure."""
    changes = {}
    for key, wanted in desired.items():
        have = str(actual.get(key, ""))
        if key == "tags":
            tags = set(re.split(r"[;, ]+", have)) - {""}
            if wanted not in tags or TEMPLATE_TAG in tags:
                changes[key] = ";".join(sorted((tags | {wanted}) - {TEMPLATE_TAG}))
        elif key == "sshkeys":
            if unquote(have).strip() != unquote(wanted).strip():
                changes[key] = wanted
        elif key.startswith("net"):
            mac = re.search(r"virtio=([0-9A-Fa-f:]{17})", have)
            bridge = re.search(r"bridge=([^,]+)", have)
            if not mac or not bridge or bridge[1] != wanted.partition("bridge=")[2]:
                changes[key] = wanted.replace("virtio,", f"virtio={mac[1]},") if mac else wanted
        elif key == "agent":
            if have.split(",", maxsplit=1)[0].removeprefix("enabled=") != wanted:
                changes[key] = wanted
        elif have != wanted:
            changes[key] = wanted
    return changes


def size_gib(drive: str) -> float:
    """The size that a drive's value tells, such as `local-lvm:vm-1-disk-0,size=20G`; 0 where it tells none. Pure."""
    size = re.search(r"size=(\d+)([MGT])", drive)
    return int(size[1]) * {"M": 1 / 1024, "G": 1, "T": 1024}[size[2]] if size else 0


def disk_gib(config: Mapping[str, Any]) -> float:
    """The size that a configuration says its first disk has; 0 where it says none. Pure."""
    return size_gib(str(config.get("scsi0", "")))


def checksum_of(listing: str, filename: str) -> str:
    """The digest of `filename` in a SHA512SUMS-style `listing`; raises KeyError. Pure."""
    for line in listing.splitlines():
        digest, _, name = line.partition(" ")
        if name.strip().lstrip("*") == filename:
            return digest
    raise KeyError(filename)


@dataclass(frozen=True)
class Machines:
    """What the actions of this module share: the environment, its machines to build, and the way to them."""

    environment: Environment
    machines: tuple[Machine, ...]
    hypervisor: Hypervisor
    shell: Shell

    def mine(self) -> dict[str, Vm]:
        """The environment's machines that exist, by name; raises ActionFailed when something else is in the way."""
        vms = as_action(self.hypervisor.vms)
        if found := refusals(self.environment, self.machines, vms):
            raise ActionFailed(
                f"{self.environment.hypervisor.api_url} has other machines in the way, and nothing was changed: "
                + "; ".join(found)
                + "; choose other ids or names in the environment, or remove those machines yourself"
            )
        wanted = {machine.vmid for machine in self.machines}
        return {vm.name: vm for vm in vms.values() if vm.vmid in wanted}


def as_action(work: Callable[[], Item]) -> Item:
    """Do `work`; raises ActionFailed for the hypervisor's errors."""
    try:
        return work()
    except HypervisorError as error:
        raise ActionFailed(str(error)) from error


@dataclass(frozen=True)
class TemplateMade:
    """The template exists: Debian's cloud image, downloaded by the hypervisor, imported, converted."""

    context: Machines
    name: str = "template"

    def pending(self) -> Sequence[str]:
        """Refuses before anything changes; one line when the template is missing or unfinished."""
        self.context.mine()
        template = self.context.environment.hypervisor.template
        vm = as_action(self.context.hypervisor.vms).get(template.vmid)
        return (
            [] if vm and vm.template else [f"make template {template.vmid} {template.name} from {template.image_url}"]
        )

    def apply(self) -> None:
        """Download (checksum verified by the hypervisor), import, attach cloud-init, convert."""
        as_action(self._apply)

    def _apply(self) -> None:
        hypervisor, description = self.context.hypervisor, self.context.environment.hypervisor
        template = description.template
        if template.vmid in hypervisor.vms():
            # Ours, by name and tag (see `refusals`), but not converted: an earlier run ended half-way.
            hypervisor.task("delete", f"qemu/{template.vmid}")
        volume = self._image()
        hypervisor.task(
            "post",
            "qemu",
            vmid=template.vmid,
            name=template.name,
            tags=TEMPLATE_TAG,
            ostype="l26",
            cores=1,
            memory=1024,
            agent="1",
            scsihw="virtio-scsi-pci",
            scsi0=f"{description.storage}:0,import-from={volume}",
            ide2=f"{description.storage}:cloudinit",
            boot="order=scsi0",
            serial0="socket",
            net0=f"virtio,bridge={next(iter(self.context.environment.networks.values())).bridge}",
        )
        upid = hypervisor.call("post", f"qemu/{template.vmid}/template")
        if upid:
            hypervisor.wait(upid)

    def _image(self) -> str:
        """The volume id of the image in the import storage, downloaded unless it is there already."""
        hypervisor, description = self.context.hypervisor, self.context.environment.hypervisor
        url = str(description.template.image_url)
        filename = basename(url)
        volume = f"{description.import_storage}:import/{filename}"
        content = hypervisor.call("get", f"storage/{description.import_storage}/content")
        if any(row["volid"] == volume for row in content):
            return volume
        kind, _, value = description.template.image_checksum.partition(":")
        if kind == "url":
            kind, value = "sha512", published_checksum(value, filename)
        parameters = {"content": "import", "filename": filename, "url": url, "checksum": value}
        hypervisor.task(
            "post",
            f"storage/{description.import_storage}/download-url",
            timeout_s=1800,
            **parameters,
            **{"checksum-algorithm": kind},
        )
        return volume


def published_checksum(url: str, filename: str) -> str:
    """The digest that `url` publishes for `filename`; raises ActionFailed."""
    try:
        reply = requests.get(url, timeout=30)
        reply.raise_for_status()
        return checksum_of(reply.text, filename)
    except requests.RequestException as error:
        raise ActionFailed(f"the image's checksums cannot be read from {url}: {error}") from error
    except KeyError as error:
        raise ActionFailed(f"{url} lists no checksum for {filename}; check hypervisor.template.image_url") from error


@dataclass(frozen=True)
class MachinesCloned:
    """Every machine exists, cloned from the template."""

    context: Machines
    name: str = "machines cloned"

    def _missing(self) -> list[Machine]:
        mine = self.context.mine()
        return [machine for machine in self.context.machines if machine.name not in mine]

    def pending(self) -> Sequence[str]:
        """A line for each machine that does not exist."""
        return [f"clone {machine.name} (VM {machine.vmid})" for machine in self._missing()]

    def apply(self) -> None:
        """Clone what is missing, all at once; the tag is set at once so that the next run knows its own."""
        missing = self._missing()
        for machine in missing:
            # Before, not after: a run that ends in between must not leave the key of a machine that is no more.
            self.context.shell.forget(machine)
        as_action(lambda: in_parallel(missing, self._clone))

    def _clone(self, machine: Machine) -> None:
        environment, hypervisor = self.context.environment, self.context.hypervisor
        template = environment.hypervisor.template.vmid
        hypervisor.task(
            "post",
            f"qemu/{template}/clone",
            newid=machine.vmid,
            name=machine.name,
            full=1,
            storage=environment.hypervisor.storage,
        )
        hypervisor.call("put", f"qemu/{machine.vmid}/config", tags=environment.tag)


@dataclass(frozen=True)
class Shape:
    """What a machine lacks of its declared shape: settings that differ, and room on its disk."""

    machine: Machine
    settings: dict[str, str]
    grows: bool

    @property
    def lines(self) -> list[str]:
        """A line each, with the settings' names and nothing secret."""
        name = self.machine.name
        told = [f"set {', '.join(sorted(self.settings))} of {name}"] if self.settings else []
        return told + ([f"grow the disk of {name} to {self.machine.disk_gib} GiB"] if self.grows else [])


@dataclass(frozen=True)
class MachinesShaped:
    """Every machine has the declared cores and their weight, memory, disk, networks and cloud-init settings."""

    context: Machines
    name: str = "machines shaped"

    def _changes(self) -> list[Shape]:
        mine, key = self.context.mine(), self.context.shell.public_key()
        found = []
        for machine in self.context.machines:
            actual = self.context.hypervisor.config(machine.vmid) if machine.name in mine else {}
            settings = config_changes(actual, desired_config(self.context.environment, machine, key))
            found.append(Shape(machine, settings, disk_gib(actual) < machine.disk_gib))
        return [shape for shape in found if shape.lines]

    def pending(self) -> Sequence[str]:
        """A line for each machine whose settings differ, and for each whose disk is too small."""
        return [line for shape in as_action(self._changes) for line in shape.lines]

    def apply(self) -> None:
        """Write the settings that differ, and grow disks to the declared size; none is ever made smaller."""
        as_action(lambda: in_parallel(self._changes(), self._write))

    def _write(self, shape: Shape) -> None:
        hypervisor, machine = self.context.hypervisor, shape.machine
        if shape.settings:
            hypervisor.call("put", f"qemu/{machine.vmid}/config", **shape.settings)
        if shape.grows:
            hypervisor.task("put", f"qemu/{machine.vmid}/resize", disk="scsi0", size=f"{machine.disk_gib}G")


def answers(address: str, port: int = 22, timeout_s: float = 0.5) -> bool:
    """Whether a host answers at `address`, be it by refusing the connection."""
    try:
        socket.create_connection((address, port), timeout_s).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class MachinesRunning:
    """Every machine runs."""

    context: Machines
    name: str = "machines running"

    def _halted(self) -> list[tuple[Machine, str]]:
        """Each machine that does not run, and its state."""
        mine = self.context.mine()
        states = {name: vm.status for name, vm in mine.items()}
        halted = ((machine, states.get(machine.name, "stopped")) for machine in self.context.machines)
        return [(machine, state) for machine, state in halted if state != "running"]

    def pending(self) -> Sequence[str]:
        """A line for each machine that does not run; one that runs but is paused counts as not running."""
        return [f"{'start' if state == 'stopped' else 'resume'} {machine.name}" for machine, state in self._halted()]

    def apply(self) -> None:
        """Start what is stopped, and let go on what is paused."""
        in_parallel(self._halted(), lambda halted: self._run(*halted))

    def _run(self, machine: Machine, state: str) -> None:
        if state != "stopped":
            as_action(lambda: self.context.hypervisor.resume(machine.vmid))
            return
        address = str(self.context.environment.address(machine))
        if answers(address):
            raise ActionFailed(
                f"{address} is answered although {machine.name} is off; free the address, or choose another",
                machine=machine.name,
            )
        as_action(lambda: self.context.hypervisor.start(machine.vmid))


@dataclass(frozen=True)
class MachinesEntered:
    """Every machine can be entered by SSH; its host key is pinned from the first time on."""

    context: Machines
    name: str = "machines entered"

    def _closed(self) -> list[Machine]:
        mine = self.context.mine()
        closed = []

        def knock(machine: Machine) -> None:
            if machine.name not in mine or mine[machine.name].status != "running":
                closed.append(machine)
                return
            try:
                self.context.shell.check(machine, "true", timeout_s=10)
            except ActionFailed:
                closed.append(machine)

        in_parallel(self.context.machines, knock)
        return [machine for machine in self.context.machines if machine in closed]

    def pending(self) -> Sequence[str]:
        """A line for each machine that cannot be entered now."""
        return [f"enter {machine.name}" for machine in self._closed()]

    def apply(self) -> None:
        """Wait for SSH; raises ActionFailed, at once where a host key is not the pinned one."""
        in_parallel(self._closed(), lambda machine: self.context.shell.wait(machine, BOOT_TIMEOUT_S))
