"""What the Proxmox API asks of the thing that runs guests: the seam between `lab.api` and `lab.guest`."""

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Literal, Protocol

PowerState = Literal["running", "stopped", "paused"]


@dataclass(frozen=True)
class Nic:
    """One network card: `netN` and `ipconfigN` of a VM's configuration, parsed."""

    index: int
    bridge: str
    mac: str
    address: IPv4Interface | None = None
    gateway: IPv4Address | None = None
    link_down: bool = False


@dataclass(frozen=True)
class GuestSpec:
    """What a guest is started with; `name` becomes the host name, `authorized_keys` go to `user`.

    `cpu_units` is its weight among guests that want more processors than there are: 100 is an ordinary one's. A disk
    smaller than `disk_bytes` grows to that size.
    """

    vmid: int
    name: str
    cores: int
    memory_mib: int
    cpu_units: int = 100
    disk_bytes: int = 0
    nics: tuple[Nic, ...] = ()
    user: str = "debian"
    authorized_keys: tuple[str, ...] = ()
    nameserver: str | None = None


@dataclass(frozen=True)
class GuestStatus:
    """What is true of a guest now; sizes in bytes, times in seconds."""

    state: PowerState
    pid: int | None = None
    uptime_s: int = 0
    memory_bytes: int = 0
    cpu_time_s: float = 0.0


@dataclass(frozen=True)
class ExecResult:
    """The end of a command run inside a guest."""

    exit_code: int
    stdout: bytes = b""
    stderr: bytes = b""


@dataclass(frozen=True)
class Interface:
    """A network interface as seen inside a guest."""

    name: str
    mac: str
    addresses: tuple[IPv4Interface, ...] = field(default=())


class DriverError(Exception):
    """A guest operation failed; the message names the guest, the operation and the cause."""


class Driver(Protocol):
    """Runs guests. Every call blocks until done and raises `DriverError` when it could not be done."""

    def create_disk(self, vmid: int, image: Path) -> None:
        """Give `vmid` a root disk imported from the raw file-system image `image`."""

    def clone_disk(self, source_vmid: int, vmid: int) -> None:
        """Give `vmid` a disk of its own that begins as `source_vmid`'s."""

    def delete_disk(self, vmid: int) -> None:
        """Remove the disk and every snapshot of `vmid`; the guest must be stopped."""

    def start(self, spec: GuestSpec) -> None:
        """Boot the guest; returns when its init runs."""

    def stop(self, vmid: int) -> None:
        """Cut the power: silence every link first, then kill. A stopped guest is left alone."""

    def shutdown(self, vmid: int, timeout_s: float) -> None:
        """Ask the guest's init to power off; raises when it has not within `timeout_s`."""

    def suspend(self, vmid: int) -> None:
        """Freeze every process of the guest, as a hang does."""

    def resume(self, vmid: int) -> None:
        """Thaw a suspended guest."""

    def set_link(self, vmid: int, nic_index: int, up: bool) -> None:
        """Plug or unplug the cable of a running guest's NIC."""

    def set_memory(self, vmid: int, memory_mib: int) -> None:
        """Change the memory limit of a running guest."""

    def set_cpu_units(self, vmid: int, cpu_units: int) -> None:
        """Change the weight of a running guest."""

    def status(self, vmid: int) -> GuestStatus:
        """Read the guest's power state and use of resources."""

    def execute(self, vmid: int, argv: list[str], stdin: bytes = b"") -> ExecResult:
        """Run `argv` as root inside a running guest and wait for it."""

    def interfaces(self, vmid: int) -> tuple[Interface, ...]:
        """List the guest's own view of its interfaces."""

    def snapshot(self, vmid: int, name: str) -> None:
        """Keep the disk as it is now under `name`; a running guest is frozen meanwhile."""

    def rollback(self, vmid: int, name: str) -> None:
        """Put the disk back to snapshot `name`; the guest must be stopped."""

    def delete_snapshot(self, vmid: int, name: str) -> None:
        """Forget snapshot `name`."""
