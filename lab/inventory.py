"""Which VMs there are and how each is configured: one file per VM, as in PVE's `qemu-server/100.conf`."""

import json
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from lab import vmconfig
from lab.durable import sync_directory, write_json
from lab.refusal import Refusal
from lab.vmconfig import Config, Value


@dataclass(frozen=True)
class Machine:
    """A VM's configuration; `pending` is what its next start changes (None deletes a key)."""

    vmid: int
    config: Config = field(default_factory=dict)
    pending: Mapping[str, Value | None] = field(default_factory=dict)
    snapshots: Mapping[str, Config] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name PVE shows."""
        return vmconfig.display_name(self.vmid, self.config)

    @property
    def lock(self) -> str | None:
        """What holds it: create, clone, destroyed, snapshot, snapshot-delete or rollback; None: nothing."""
        lock = self.config.get("lock")
        return None if lock is None else str(lock)

    @property
    def is_template(self) -> bool:
        """Whether it can be cloned but not started."""
        return bool(self.config.get("template"))

    @property
    def digest(self) -> str:
        """Changes whenever the configuration or a snapshot does."""
        return vmconfig.digest(self.config, self.snapshots)

    @property
    def next_config(self) -> dict[str, Value]:
        """The configuration that the next start will use."""
        merged: dict[str, Value | None] = {**self.config, **self.pending}
        return {key: value for key, value in merged.items() if value is not None}

    def with_lock(self, lock: str | None) -> "Machine":
        """The same VM with the lock set, or with none."""
        config = {key: value for key, value in self.config.items() if key != "lock"}
        return replace(self, config=config if lock is None else {**config, "lock": lock})

    def check_lock(self) -> None:
        """Raise PVE's refusal when something holds the configuration."""
        if self.lock:
            raise Refusal(500, f"VM is locked ({self.lock})")


class ConfigLocks:
    """The lock file of each VM's configuration: one change at a time, others wait `timeout_s` at most."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = -1.0 if timeout_s is None else timeout_s
        self._guard = threading.Lock()
        self._locks: dict[int, threading.Lock] = defaultdict(threading.Lock)

    @contextmanager
    def hold(self, vmid: int) -> Iterator[None]:
        """Keep others off; raises PVE's time-out when it is not to be had."""
        with self._guard:
            lock = self._locks[vmid]
        if not lock.acquire(timeout=self._timeout_s):
            raise Refusal(500, f"can't lock file '/var/lock/qemu-server/lock-{vmid}.conf' - got timeout")
        try:
            yield
        finally:
            lock.release()


class Inventory:
    """The VMs by id. A machine read here never changes; whoever changes one puts a new one."""

    def __init__(self, directory: Path, node: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._node = node
        self._guard = threading.Lock()
        self._machines = {
            int(path.stem): Machine(int(path.stem), **json.loads(path.read_text())) for path in directory.glob("*.json")
        }

    def __iter__(self) -> Iterator[Machine]:
        with self._guard:
            return iter(sorted(self._machines.values(), key=lambda machine: machine.vmid))

    def __contains__(self, vmid: object) -> bool:
        with self._guard:
            return vmid in self._machines

    def get(self, vmid: int) -> Machine:
        """Find a VM; raises PVE's refusal when there is none."""
        with self._guard:
            machine = self._machines.get(vmid)
        if machine is None:
            path = f"nodes/{self._node}/qemu-server/{vmid}.conf"
            raise Refusal(500, f"Configuration file '{path}' does not exist")
        return machine

    def add(self, machine: Machine, taken: str) -> None:
        """Keep a new VM; raises a refusal that says `taken` when its id is in use."""
        with self._guard:
            if machine.vmid in self._machines:
                raise Refusal(500, taken)
            self._write(machine)

    def put(self, machine: Machine) -> None:
        """Keep a VM's new state."""
        with self._guard:
            self._write(machine)

    def remove(self, vmid: int) -> None:
        """Forget a VM; one that is not there is no error."""
        with self._guard:
            self._path(vmid).unlink(missing_ok=True)
            sync_directory(self._directory)
            self._machines.pop(vmid, None)

    def next_id(self) -> int:
        """The lowest id from 100 on that is free."""
        with self._guard:
            return next(vmid for vmid in range(100, 1_000_000_000) if vmid not in self._machines)

    def macs(self) -> set[str]:
        """Every MAC address in use."""
        return {mac for machine in self for mac in vmconfig.macs(machine.next_config)}

    def _path(self, vmid: int) -> Path:
        return self._directory / f"{vmid}.json"

    def _write(self, machine: Machine) -> None:
        record = asdict(machine)
        del record["vmid"]
        write_json(self._path(machine.vmid), record)
        self._machines[machine.vmid] = machine
