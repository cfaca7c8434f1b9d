"""Faults in pairs, inject and heal; healing what is whole changes nothing.

What is done on a machine over SSH expires there by itself: a systemd timer is set before anything is broken. What is
done over the Proxmox VE API is taken back by the journal (`chaos.journal`), whoever made it.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from kubernetes import client

from chaos import scripts
from environments.model import Environment, Machine
from provisioning.cluster import REQUEST_TIMEOUT_S
from provisioning.hypervisor import Hypervisor
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.session import Session
from provisioning.site import NAME, NAMESPACE, SELECTOR
from provisioning.ssh import Unreachable
from steps.machines import cards

# A machine that is being healed may be booting, or cut off until its own timer has freed it.
REACHED_TIMEOUT_S = 240
COMMAND_TIMEOUT_S = 30


class NoSuchFault(Exception):
    """Nothing goes by this name; the message offers the nearest."""


@dataclass(frozen=True)
class Struck:
    """A machine, those that it is cut off from where the fault is about that, and when it expires on the target."""

    machine: Machine
    peers: tuple[Machine, ...] = ()
    expires_s: float = 300.0


class FaultKind(Protocol):
    """What can be done to a machine, and what takes it back."""

    @property
    def name(self) -> str:
        """In words, as drills call it."""

    @property
    def takes_down(self) -> bool:
        """Whether the machine as a whole is away meanwhile."""

    def marks(self, struck: Struck) -> tuple[Machine, ...]:
        """Every machine that there is something to heal on."""

    def blocked(self, session: Session, machine: Machine) -> str:
        """Why it cannot be done to this machine; empty when it can."""

    def inject(self, session: Session, struck: Struck) -> None:
        """Do it; raises ActionFailed, ApiException and HypervisorError."""

    def heal(self, session: Session, machine: Machine) -> None:
        """Take it back; raises ActionFailed, ApiException and HypervisorError."""

    def by_hand(self, environment: Environment, machine: Machine) -> str:
        """What a person would do where healing fails."""


@dataclass(frozen=True)
class OfPower:
    """Done and taken back by the hypervisor."""

    name: str
    do: Callable[[Hypervisor, Machine], None]
    undo: Callable[[Hypervisor, Machine], None]
    takes_down: bool = True

    def marks(self, struck: Struck) -> tuple[Machine, ...]:
        """The machine alone."""
        return (struck.machine,)

    def blocked(self, session: Session, machine: Machine) -> str:
        """The API of every hypervisor can."""
        return ""

    def inject(self, session: Session, struck: Struck) -> None:
        """Awaits the hypervisor's task."""
        self.do(session.hypervisor, struck.machine)

    def heal(self, session: Session, machine: Machine) -> None:
        """Awaits the hypervisor's task."""
        self.undo(session.hypervisor, machine)

    def by_hand(self, environment: Environment, machine: Machine) -> str:
        """By Proxmox VE's own command."""
        return f"qm start {machine.vmid}; qm resume {machine.vmid}; and set no link_down on its network cards"


@dataclass(frozen=True)
class OnMachine:
    """Done on the machine over SSH by a script; `mend` goes there first, and a timer with it."""

    name: str
    breaks: Callable[[Environment, Sequence[str]], str]
    mend: Callable[[Environment], str]
    able: Callable[[Environment], str] = lambda _: ""
    takes_down: bool = False
    mutual: bool = field(default=False, kw_only=True)

    def marks(self, struck: Struck) -> tuple[Machine, ...]:
        """Both sides, where both are cut off from each other."""
        return (struck.machine, *(struck.peers if self.mutual else ()))

    def blocked(self, session: Session, machine: Machine) -> str:
        """What the machine itself says: the first line that its check prints."""
        told = session.shell.run(machine, self.able(session.environment) or "true", timeout_s=COMMAND_TIMEOUT_S)
        return told.stdout.strip().partition("\n")[0]

    def inject(self, session: Session, struck: Struck) -> None:
        """The timer first: from then on it heals whatever becomes of this process."""
        self._do(session, struck.machine, struck.peers, struck.expires_s)
        if self.mutual:
            for peer in struck.peers:
                self._do(session, peer, (struck.machine,), struck.expires_s)

    def _do(self, session: Session, machine: Machine, peers: Sequence[Machine], expires_s: float) -> None:
        addresses = [card.mac for peer in peers for card in cards(session.hypervisor.config(peer.vmid)).values()]
        session.shell.check(
            machine,
            scripts.expiring(self._slug, expires_s, self.breaks(session.environment, addresses)),
            stdin=self.mend(session.environment),
            timeout_s=COMMAND_TIMEOUT_S,
        )

    def heal(self, session: Session, machine: Machine) -> None:
        """Waits for a machine that cannot be reached yet; raises Unreachable when it stays so."""
        script = f"{self.mend(session.environment)}\n{scripts.forget(self._slug)}"

        def healed() -> bool:
            try:
                session.shell.check(machine, script, timeout_s=COMMAND_TIMEOUT_S)
            except Unreachable as error:
                raise NotYet(error.cause) from error
            return True

        try:
            poll(f"{machine.name} by SSH", healed, timeout_s=REACHED_TIMEOUT_S, interval_s=1)
        except DeadlineExceeded as error:
            raise Unreachable(str(error), machine=machine.name, command=script) from error

    def by_hand(self, environment: Environment, machine: Machine) -> str:
        """The same script, as root over there."""
        return f"on {machine.name}: {self.mend(environment)}"

    @property
    def _slug(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class OfPods:
    """Done to the site's Pods over the Kubernetes API, which makes others by itself: there is nothing to heal."""

    name: str
    do: Callable[[Session, Machine], None]
    takes_down: bool = False

    def marks(self, struck: Struck) -> tuple[Machine, ...]:
        """None."""
        return ()

    def blocked(self, session: Session, machine: Machine) -> str:
        """Every cluster can."""
        return ""

    def inject(self, session: Session, struck: Struck) -> None:
        """Returns when the API has taken it."""
        self.do(session, struck.machine)

    def heal(self, session: Session, machine: Machine) -> None:
        """The Deployment does."""

    def by_hand(self, environment: Environment, machine: Machine) -> str:
        """Nothing but to look."""
        return f"kubectl -n {NAMESPACE} rollout status deployment/{NAME}"


def _start(hypervisor: Hypervisor, machine: Machine) -> None:
    if hypervisor.power(machine.vmid) == "stopped":
        hypervisor.start(machine.vmid)


def _resume(hypervisor: Hypervisor, machine: Machine) -> None:
    if hypervisor.power(machine.vmid) == "paused":
        hypervisor.resume(machine.vmid)
    _start(hypervisor, machine)


def _links(hypervisor: Hypervisor, machine: Machine, *, down: bool) -> None:
    """Pull or plug the cables of all network cards (Proxmox VE: `link_down` of `netN`, at once in a running VM)."""
    config = hypervisor.config(machine.vmid)
    for index in cards(config):
        value = str(config[f"net{index}"])
        wanted = re.sub(r",link_down=\d", "", value) + (",link_down=1" if down else "")
        if wanted != value:
            hypervisor.call("put", f"qemu/{machine.vmid}/config", **{f"net{index}": wanted})


def _replicas(session: Session, machine: Machine) -> list[client.V1Pod]:
    return list(
        session.cluster.core.list_namespaced_pod(
            NAMESPACE,
            label_selector=SELECTOR,
            field_selector=f"spec.nodeName={machine.name}",
            _request_timeout=REQUEST_TIMEOUT_S,
        ).items
    )


def _delete(session: Session, machine: Machine) -> None:
    for pod in _replicas(session, machine):
        session.cluster.core.delete_namespaced_pod(pod.metadata.name, NAMESPACE, _request_timeout=REQUEST_TIMEOUT_S)


def _evict(session: Session, machine: Machine) -> None:
    for pod in _replicas(session, machine):
        name = pod.metadata.name
        body = client.V1Eviction(metadata=client.V1ObjectMeta(name=name, namespace=NAMESPACE))
        session.cluster.core.create_namespaced_pod_eviction(name, NAMESPACE, body, _request_timeout=REQUEST_TIMEOUT_S)


def _restart(session: Session, _: Machine) -> None:
    told = {"kubectl.kubernetes.io/restartedAt": datetime.now(UTC).isoformat()}
    body = {"spec": {"template": {"metadata": {"annotations": told}}}}
    session.cluster.apps.patch_namespaced_deployment(NAME, NAMESPACE, body, _request_timeout=REQUEST_TIMEOUT_S)


def _same(script: str) -> Callable[[Environment], str]:
    return lambda _: script


def _always(script: str) -> Callable[[Environment, Sequence[str]], str]:
    return lambda *_: script


def _of_network() -> list[FaultKind]:
    able = _same(scripts.NEEDS_NFT)
    mend = _same(scripts.UNFILTER)
    return [
        OfPower(
            "network down",
            lambda hypervisor, machine: _links(hypervisor, machine, down=True),
            lambda hypervisor, machine: _links(hypervisor, machine, down=False),
        ),
        OnMachine("partition", lambda _, macs: scripts.filtered(scripts.deaf_to(macs)), mend, able, mutual=True),
        OnMachine("one-way partition", lambda _, macs: scripts.filtered(scripts.deaf_to(macs)), mend, able),
        OnMachine("packet loss", _always(scripts.filtered("numgen random mod 100 < 20 drop")), mend, able),
        OnMachine("narrow network", _always(scripts.filtered("limit rate over 256 kbytes/second drop")), mend, able),
    ]


def _of_processes() -> list[FaultKind]:
    found: list[FaultKind] = []
    for name, unit in scripts.UNITS.items():
        up, able = _same(scripts.started(unit)), _same(scripts.has_unit(unit))
        found.append(OnMachine(f"{name} killed", _always(scripts.unit_killed(unit)), up, able))
        found.append(OnMachine(f"{name} stopped", _always(scripts.stopped(unit)), up, able))
    for name in scripts.CONTAINERS:
        able = _same(scripts.has_container(name))
        found.append(OnMachine(f"{name} killed", _always(scripts.signalled(name, "KILL")), _same("true"), able))
        thaw = _same(scripts.signalled(name, "CONT"))
        found.append(OnMachine(f"{name} frozen", _always(scripts.signalled(name, "STOP")), thaw, able))
    for name in scripts.STATIC_PODS:
        back, able = _same(scripts.manifest_back(name)), _same(scripts.has_container(name))
        found.append(OnMachine(f"{name} stopped", _always(scripts.manifest_away(name)), back, able))
    return found


def _of_resources() -> list[FaultKind]:
    found: list[FaultKind] = [
        OnMachine("processors busy", _always(scripts.BUSY), _same(scripts.IDLE)),
        OnMachine("memory full", _always(scripts.MEMORY_TAKEN), _same(scripts.MEMORY_FREED)),
    ]
    for name, directory in scripts.DIRECTORIES.items():
        found.append(
            OnMachine(
                f"{name} full",
                lambda env, _, where=directory: scripts.filled(where(env)),  # type: ignore[misc]
                lambda env, where=directory: scripts.emptied(where(env)),  # type: ignore[misc]
                lambda env, where=directory: scripts.bounded(where(env)),  # type: ignore[misc]
            )
        )
        found.append(
            OnMachine(
                f"{name} out of inodes",
                lambda env, _, where=directory: scripts.inodes_taken(where(env)),  # type: ignore[misc]
                lambda env, where=directory: scripts.inodes_freed(where(env)),  # type: ignore[misc]
                lambda env, where=directory: scripts.few_inodes(where(env)),  # type: ignore[misc]
            )
        )
    return found


KINDS: Mapping[str, FaultKind] = {
    kind.name: kind
    for kind in (
        OfPower("power cut", lambda hypervisor, machine: hypervisor.stop(machine.vmid), _start),
        OfPower("shutdown", lambda hypervisor, machine: hypervisor.shutdown(machine.vmid), _start),
        OfPower("hang", lambda hypervisor, machine: hypervisor.suspend(machine.vmid), _resume),
        OfPower("reboot", lambda hypervisor, machine: hypervisor.reboot(machine.vmid), _start),
        *_of_network(),
        *_of_processes(),
        OfPods("replica deleted", _delete),
        OfPods("replica evicted", _evict),
        OfPods("rolling restart", _restart),
        *_of_resources(),
    )
}


def kind_named(name: str) -> FaultKind:
    """The fault of that name; raises NoSuchFault with the nearest."""
    if name in KINDS:
        return KINDS[name]
    close = difflib.get_close_matches(name, KINDS, n=3, cutoff=0.5)
    told = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(KINDS)}"
    raise NoSuchFault(f"no fault is called “{name}”; {told}")
