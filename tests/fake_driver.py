"""A driver without guests: keeps what was asked of it in memory, as `lab.driver.Driver` says."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.driver import DriverError, ExecResult, GuestSpec, GuestStatus, Interface, PowerState

OS_RELEASE = b'NAME="Debian GNU/Linux"\nID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'


class FakeDriver:
    """Guests as a table; `failures` maps an operation to the error it ends with."""

    def __init__(self) -> None:
        self.disks: dict[int, bytes] = {}
        self.snapshots: dict[tuple[int, str], bytes] = {}
        self.specs: dict[int, GuestSpec] = {}
        self.states: dict[int, PowerState] = {}
        self.links: dict[tuple[int, int], bool] = {}
        self.memory_mib: dict[int, int] = {}
        self.cpu_units: dict[int, int] = {}
        self.calls: list[tuple[str, int]] = []
        self.failures: dict[str, str] = {}
        self.simultaneous_clones = 0
        self._cloning = 0
        self._gates: dict[str, threading.Event] = {}
        self._guard = threading.Lock()

    @contextmanager
    def held(self, operation: str) -> Iterator[None]:
        """Let every `operation` wait until this ends."""
        gate = self._gates[operation] = threading.Event()
        try:
            yield
        finally:
            gate.set()

    def _enter(self, operation: str, vmid: int) -> None:
        self.calls.append((operation, vmid))
        if gate := self._gates.get(operation):
            assert gate.wait(30), f"{operation} of {vmid} was held for 30 s"
        if message := self.failures.get(operation):
            raise DriverError(f"guest {vmid}: {operation}: {message}")

    def _need(self, vmid: int, state: PowerState) -> None:
        if self.states.get(vmid, "stopped") != state:
            raise DriverError(f"guest {vmid} is {self.states.get(vmid, 'stopped')}, not {state}")

    def create_disk(self, vmid: int, image: Path) -> None:
        self._enter("create_disk", vmid)
        self.disks[vmid] = image.read_bytes()

    def clone_disk(self, source_vmid: int, vmid: int) -> None:
        with self._guard:
            self._cloning += 1
            self.simultaneous_clones = max(self.simultaneous_clones, self._cloning)
        try:
            self._enter("clone_disk", vmid)
            self.disks[vmid] = self.disks[source_vmid]
        finally:
            with self._guard:
                self._cloning -= 1

    def delete_disk(self, vmid: int) -> None:
        self._enter("delete_disk", vmid)
        self._need(vmid, "stopped")
        if vmid not in self.disks:
            raise DriverError(f"guest {vmid} has no disk")
        del self.disks[vmid]
        self.snapshots = {key: disk for key, disk in self.snapshots.items() if key[0] != vmid}

    def start(self, spec: GuestSpec) -> None:
        self._enter("start", spec.vmid)
        self._need(spec.vmid, "stopped")
        self.specs[spec.vmid] = spec
        self.states[spec.vmid] = "running"

    def stop(self, vmid: int) -> None:
        self._enter("stop", vmid)
        self.states[vmid] = "stopped"

    def shutdown(self, vmid: int, timeout_s: float) -> None:
        self._enter("shutdown", vmid)
        self.states[vmid] = "stopped"

    def suspend(self, vmid: int) -> None:
        self._enter("suspend", vmid)
        self._need(vmid, "running")
        self.states[vmid] = "paused"

    def resume(self, vmid: int) -> None:
        self._enter("resume", vmid)
        self.states[vmid] = "running"

    def set_link(self, vmid: int, nic_index: int, up: bool) -> None:
        self._enter("set_link", vmid)
        self.links[vmid, nic_index] = up

    def set_memory(self, vmid: int, memory_mib: int) -> None:
        self._enter("set_memory", vmid)
        self.memory_mib[vmid] = memory_mib

    def set_cpu_units(self, vmid: int, cpu_units: int) -> None:
        self._enter("set_cpu_units", vmid)
        self.cpu_units[vmid] = cpu_units

    def status(self, vmid: int) -> GuestStatus:
        state = self.states.get(vmid, "stopped")
        return GuestStatus(state) if state == "stopped" else GuestStatus(state, 4000 + vmid, 7, 64 * 2**20, 1.5)

    def execute(self, vmid: int, argv: list[str], stdin: bytes = b"") -> ExecResult:
        self._enter("execute", vmid)
        self._need(vmid, "running")
        answers = {
            "true": b"",
            "hostname": f"{self.specs[vmid].name}\n".encode(),
            "cat": OS_RELEASE if argv[1:] else stdin,
            "sh": b"x86_64\n6.1.0\n#1 SMP\n",
        }
        if argv[0] not in answers:
            return ExecResult(127, b"", f"{argv[0]}: not found\n".encode())
        return ExecResult(0, answers[argv[0]])

    def interfaces(self, vmid: int) -> tuple[Interface, ...]:
        self._enter("interfaces", vmid)
        nics = self.specs[vmid].nics
        return tuple(Interface(f"ens{18 + n.index}", n.mac, (n.address,) if n.address else ()) for n in nics)

    def snapshot(self, vmid: int, name: str) -> None:
        self._enter("snapshot", vmid)
        self.snapshots[vmid, name] = self.disks[vmid]

    def rollback(self, vmid: int, name: str) -> None:
        self._enter("rollback", vmid)
        self._need(vmid, "stopped")
        self.disks[vmid] = self.snapshots[vmid, name]

    def delete_snapshot(self, vmid: int, name: str) -> None:
        self._enter("delete_snapshot", vmid)
        if (vmid, name) not in self.snapshots:
            raise DriverError(f"guest {vmid} has no snapshot {name}")
        del self.snapshots[vmid, name]
