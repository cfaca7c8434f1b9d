"""What is broken on purpose just now: on the disk before it is, and healed from there whoever broke it."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kubernetes.client.exceptions import ApiException

from chaos.fault import KINDS
from environments.model import Machine
from provisioning.action import ActionFailed
from provisioning.hypervisor import HypervisorError
from provisioning.session import Session


class HealFailed(Exception):
    """Something could not be taken back; it stays noted, and the message says what a person would do."""


@dataclass(frozen=True)
class Wound:
    """A fault, by name, and the machine that it is to be taken back on, by the hypervisor's id."""

    fault: str
    vmid: int


@dataclass(frozen=True)
class Journal:
    """The wounds of one environment, in a file of its state. One process writes at a time: it holds the state."""

    file: Path

    def held(self) -> list[Wound]:
        """What is noted, in the order of noting."""
        try:
            return [Wound(str(name), int(vmid)) for name, vmid in json.loads(self.file.read_text())]
        except FileNotFoundError:
            return []

    def note(self, wounds: Sequence[Wound]) -> None:
        """Write down, onto the disk, what is about to be done."""
        self._write([*self.held(), *wounds])

    def heal(self, session: Session, only: Sequence[Wound] | None = None) -> list[str]:
        """Take back what is noted, or `only` some of it, and forget that; a line for each that was.

        All are tried, and power first: no machine can be mended that is off. What is still broken afterwards was not
        healed, whatever healing said. Raises HealFailed naming the others, or the file that cannot be written.
        """
        by_id = {machine.vmid: machine for machine in session.environment.machines}
        noted = [wound for wound in self.held() if only is None or wound in only]
        wanted = [wound for wound in noted if wound.vmid in by_id and wound.fault in KINDS]
        healed = list[Wound]()
        failed = [
            f"{wound.fault} of VM {wound.vmid} is NOT healed: the environment has no such machine, or there is no such "
            f"fault\n  by hand: mend it, and take it out of {self.file}"
            for wound in noted
            if wound not in wanted
        ]
        for down in (True, False):
            group = [wound for wound in wanted if KINDS[wound.fault].takes_down is down]
            with ThreadPoolExecutor(max(1, len(group))) as pool:
                ends = list(pool.map(lambda wound: _healed(session, wound, by_id[wound.vmid]), group))
            healed += [wound for wound, told in zip(group, ends, strict=True) if not told]
            failed += [told for told in ends if told]
        try:
            self._write([wound for wound in self.held() if wound not in healed])
        except OSError as error:
            failed.append(f"{self.file}: {error.strerror}; what was healed stays noted, to be healed once more")
        if failed:
            raise HealFailed("\n".join(failed))
        return [f"{wound.fault} of {by_id[wound.vmid].name}" for wound in healed]

    def _write(self, wounds: Sequence[Wound]) -> None:
        if not wounds:
            self.file.unlink(missing_ok=True)
            return
        temporary = self.file.with_suffix(".new")
        with temporary.open("w") as file:
            json.dump([[wound.fault, wound.vmid] for wound in wounds], file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.file)


def _healed(session: Session, wound: Wound, machine: Machine) -> str:
    """Empty, or why it could not be done and what to do by hand."""
    kind = KINDS[wound.fault]
    try:
        kind.heal(session, machine)
        told = kind.remains(session, machine)
    except (ActionFailed, ApiException, HypervisorError, OSError) as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not told:
        return ""
    by_hand = kind.by_hand(session.environment, machine)
    return f"{wound.fault} of {machine.name} is NOT healed: {told}\n  by hand: {by_hand}"
