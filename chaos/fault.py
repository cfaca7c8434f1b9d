"""Faults in pairs, inject and heal; what is to be healed is on the disk before anything is broken."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from environments.model import Machine
from provisioning.hypervisor import Hypervisor
from provisioning.machines import in_parallel


@dataclass(frozen=True)
class FaultKind:
    """What is done to a machine, and what takes it back; healing a healthy machine changes nothing."""

    name: str
    inject: Callable[[Hypervisor, Machine], None]
    heal: Callable[[Hypervisor, Machine], None]


def _start(hypervisor: Hypervisor, machine: Machine) -> None:
    if hypervisor.power(machine.vmid) == "stopped":
        hypervisor.start(machine.vmid)


def _resume(hypervisor: Hypervisor, machine: Machine) -> None:
    if hypervisor.power(machine.vmid) == "paused":
        hypervisor.resume(machine.vmid)
    _start(hypervisor, machine)


KINDS: Mapping[str, FaultKind] = {
    kind.name: kind
    for kind in (
        FaultKind("power cut", lambda hypervisor, machine: hypervisor.stop(machine.vmid), _start),
        FaultKind("shutdown", lambda hypervisor, machine: hypervisor.shutdown(machine.vmid), _start),
        FaultKind("hang", lambda hypervisor, machine: hypervisor.suspend(machine.vmid), _resume),
    )
}


@dataclass(frozen=True)
class Journal:
    """What is broken on purpose just now, in a file of the environment's state: healed from it whoever broke it."""

    file: Path

    def note(self, kind: FaultKind, machines: Sequence[Machine]) -> None:
        """Write down, onto the disk, what is about to be done."""
        held = [*self._held(), *([kind.name, machine.vmid] for machine in machines)]
        temporary = self.file.with_suffix(".new")
        with temporary.open("w") as file:
            json.dump(held, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.file)

    def heal(self, hypervisor: Hypervisor, machines: Sequence[Machine]) -> list[str]:
        """Take back everything that is noted, and forget it; what was healed, a line each. Raises HypervisorError."""
        by_id = {machine.vmid: machine for machine in machines}
        held = [(KINDS[name], by_id[vmid]) for name, vmid in self._held() if vmid in by_id]
        in_parallel(held, lambda pair: pair[0].heal(hypervisor, pair[1]))
        self.file.unlink(missing_ok=True)
        return [f"{kind.name} of {machine.name}" for kind, machine in held]

    def _held(self) -> list[tuple[str, int]]:
        try:
            return [(str(name), int(vmid)) for name, vmid in json.loads(self.file.read_text())]
        except FileNotFoundError:
            return []
