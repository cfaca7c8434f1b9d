"""What a change of a VM's configuration means: what holds at once, what waits for the next start. Pure.

PVE's rules (qemu-server, `hotplug` defaults to `network,disk,usb`): a stopped VM takes everything at once; a
running one takes what its process never sees, and what can be changed in a running guest.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from lab import vmconfig
from lab.inventory import Machine
from lab.refusal import invalid
from lab.vmconfig import Drive, Net, Value

AT_ONCE = frozenset(["agent", "cpuunits", "description", "hotplug", "name", "onboot", "protection", "startup", "tags"])
OPTIONS = AT_ONCE | frozenset(
    [
        "acpi",
        "autostart",
        "balloon",
        "bios",
        "boot",
        "bootdisk",
        "ciupgrade",
        "ciuser",
        "citype",
        "cores",
        "cpu",
        "cpulimit",
        "kvm",
        "machine",
        "memory",
        "nameserver",
        "numa",
        "ostype",
        "rng0",
        "scsihw",
        "searchdomain",
        "smbios1",
        "sockets",
        "sshkeys",
        "tablet",
        "template",
        "vga",
        "vmgenid",
        "watchdog",
    ]
)
INDEXED_OPTION = re.compile(rf"(?:net|ipconfig|serial|unused)\d+|{vmconfig.DRIVE_KEY.pattern}")


@dataclass(frozen=True)
class Change:
    """The VM afterwards, and what to do to the running guest: cables by NIC index, memory in MiB, its weight."""

    machine: Machine
    links_up: Mapping[int, bool] = field(default_factory=dict)
    memory_mib: int | None = None
    cpu_units: int | None = None


def check(machine: Machine, updates: Mapping[str, Value], deletes: Collection[str]) -> None:
    """Raise PVE's refusal of a change that names what is not there or contradicts itself."""
    for key in deletes:
        if key not in OPTIONS and not INDEXED_OPTION.fullmatch(key):
            raise invalid({"delete": f"unknown option '{key}'"})
        if key in updates:
            raise invalid({"delete": f"you can't use '-{key}' and -delete {key}' at the same time"})
        root = vmconfig.root_drive(machine.config)
        if root and key == root[0]:
            raise invalid({"delete": f"{key} is the root disk: a lab guest cannot be without it"})
    order = str(updates.get("boot", ""))
    if order.startswith("order="):
        devices = machine.next_config.keys() | updates.keys()
        for device in filter(None, order.removeprefix("order=").split(";")):
            if device not in devices:
                raise invalid({"boot": f"invalid bootorder: device '{device}' does not exist'"})


def plan(machine: Machine, updates: Mapping[str, Value], deletes: Collection[str], running: bool) -> Change:
    """Decide what a change does to a stopped or running VM."""
    config, pending = dict(machine.config), dict(machine.pending)
    links_up: dict[int, bool] = {}
    memory_mib = None
    for key in deletes:
        pending.pop(key, None)
        if not running or key in AT_ONCE:
            config.pop(key, None)
        elif key in config:
            pending[key] = None
    for key, value in updates.items():
        pending.pop(key, None)
        index = _same_card(key, config.get(key), value)
        if not running or key in AT_ONCE or _cdrom(config.get(key), value):
            config[key] = value
        elif index is not None:
            if Net.parse(str(config[key])).link_down != Net.parse(str(value)).link_down:
                links_up[index] = not Net.parse(str(value)).link_down
            config[key] = value
        elif key == "memory" and "memory" in str(config.get("hotplug", "")):
            config[key] = value
            memory_mib = vmconfig.memory_mib(config)
        elif config.get(key) != value:
            pending[key] = value
    weighed = running and "cpuunits" in {*updates, *deletes}
    return Change(
        replace(machine, config=config, pending=pending),
        links_up,
        memory_mib,
        vmconfig.cpu_units(config) if weighed else None,
    )


def _same_card(key: str, old: Value | None, new: Value) -> int | None:
    """The NIC's index when both values mean the same card on the same bridge, else None."""
    found = re.fullmatch(r"net(\d+)", key)
    if not found or old is None:
        return None
    before, after = Net.parse(str(old)), Net.parse(str(new))
    same = (before.model, before.mac, before.bridge) == (after.model, after.mac, after.bridge)
    return int(found[1]) if same else None


def _cdrom(old: Value | None, new: Value) -> bool:
    """Whether a medium is put into a CD drive that is already there."""
    if old is None or "media=cdrom" not in f"{old}":
        return False
    return Drive.parse(str(new)).is_cdrom
