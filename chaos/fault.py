"""Faults in pairs, inject and heal; healing what is whole changes nothing.

What is done on a machine over SSH expires there by itself: a systemd timer is set before anything is broken. What is
done over the Proxmox VE API is taken back by the journal (`chaos.journal`), whoever made it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from kubernetes import client

from certificate.verdict import NotExercised
from chaos import scripts
from chaos.target import nearest
from environments.model import Environment, Machine
from provisioning.cluster import REQUEST_TIMEOUT_S
from provisioning.hypervisor import Hypervisor
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.session import Session
from provisioning.site import NAME, NAMESPACE, site_pods
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

    def remains(self, session: Session, machine: Machine) -> str:
        """What is still broken after healing, in a line; empty when nothing is. Raises as `heal`."""

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
        """Awaits the hypervisor's task, and the one before: whoever asked for that may have died over it."""
        session.hypervisor.settle(machine.vmid)
        self.undo(session.hypervisor, machine)

    def remains(self, session: Session, machine: Machine) -> str:
        """The power's state, or a cable that is out."""
        if (state := session.hypervisor.power(machine.vmid)) != "running":
            return f"it is {state}"
        config = session.hypervisor.config(machine.vmid)
        out = [f"net{index}" for index in cards(config) if "link_down=1" in str(config[f"net{index}"])]
        return f"the cables of {', '.join(out)} are out" if out else ""

    def by_hand(self, environment: Environment, machine: Machine) -> str:
        """By Proxmox VE's own command."""
        return f"qm start {machine.vmid}; qm resume {machine.vmid}; and set no link_down on its network cards"


@dataclass(frozen=True)
class OnMachine:
    """Done on the machine over SSH by a script; `mend` goes there first, and a timer with it.

    `able` prints why it cannot be done there, `lasts` what is left of it; a line each, or nothing.
    """

    name: str
    breaks: Callable[[Environment, Sequence[str]], str]
    mend: Callable[[Environment], str]
    able: Callable[[Environment], str] = lambda _: ""
    lasts: Callable[[Environment], str] = lambda _: "true"
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
            scripts.apart(scripts.expiring(self._slug, expires_s, self.breaks(session.environment, addresses))),
            stdin=self.mend(session.environment),
            timeout_s=COMMAND_TIMEOUT_S,
        )

    def heal(self, session: Session, machine: Machine) -> None:
        """Waits for a machine that cannot be reached yet; raises Unreachable when it stays so."""
        script = scripts.apart(f"{self.mend(session.environment)}\n{scripts.forget(self._slug)}")

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

    def remains(self, session: Session, machine: Machine) -> str:
        """By what it did there, and by its timer: that is stopped when what mends has come to its end."""
        script = f"{self.lasts(session.environment)}\n{scripts.waiting(self._slug)}"
        told = session.shell.run(machine, script, timeout_s=COMMAND_TIMEOUT_S)
        return told.stdout.strip().partition("\n")[0]

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

    def remains(self, session: Session, machine: Machine) -> str:
        """Nothing that was broken; whether every replica is there again is the drill's to see."""
        return ""

    def by_hand(self, environment: Environment, machine: Machine) -> str:
        """Nothing but to look."""
        return f"kubectl -n {NAMESPACE} rollout status deployment/{NAME}"


@dataclass(frozen=True)
class OfHost:
    """A hypervisor that is lost, with the machines on it. An environment describes one node: it is never done."""

    name: str
    takes_down: bool = True

    def marks(self, struck: Struck) -> tuple[Machine, ...]:
        """None: there is nobody to heal it by."""
        return ()

    def blocked(self, session: Session, machine: Machine) -> str:
        """With the only one everything is lost, and so is whoever would heal it."""
        return f"the target has one hypervisor, {session.environment.hypervisor.node}: no machine can move to another"

    def inject(self, session: Session, struck: Struck) -> None:
        """Never; raises NotExercised."""
        raise NotExercised(self.blocked(session, struck.machine))

    def heal(self, session: Session, machine: Machine) -> None:
        """There is nothing to take back."""

    def remains(self, session: Session, machine: Machine) -> str:
        """Nothing, as nothing was done."""
        return ""

    def by_hand(self, environment: Environment, machine: Machine) -> str:
        """What a person can do at the hypervisor's console alone."""
        return f"start the hypervisor {environment.hypervisor.node}"


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
    return [pod for pod in site_pods(session.cluster) if pod.spec.node_name == machine.name]


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


def _filter(name: str, rule: Callable[[Sequence[str]], str], *, mutual: bool = False) -> OnMachine:
    return OnMachine(
        name,
        lambda _, macs: scripts.filtered(rule(macs)),
        _same(scripts.UNFILTER),
        _same(scripts.NEEDS_NFT),
        _same(scripts.STILL_FILTERED),
        mutual=mutual,
    )


def _of_network() -> list[FaultKind]:
    return [
        OfPower(
            "network down",
            lambda hypervisor, machine: _links(hypervisor, machine, down=True),
            lambda hypervisor, machine: _links(hypervisor, machine, down=False),
        ),
        _filter("partition", scripts.deaf_to, mutual=True),
        _filter("one-way partition", scripts.deaf_to),
        _filter("packet loss", lambda _: "numgen random mod 100 < 20 drop"),
        _filter("narrow network", lambda _: "limit rate over 256 kbytes/second drop"),
    ]


def _of_processes() -> list[FaultKind]:
    found: list[FaultKind] = []
    for name, unit in scripts.UNITS.items():
        up, able, lasts = (_same(script(unit)) for script in (scripts.started, scripts.has_unit, scripts.not_running))
        found.append(OnMachine(f"{name} killed", _always(scripts.unit_killed(unit)), up, able, lasts))
        found.append(OnMachine(f"{name} stopped", _always(scripts.stopped(unit)), up, able, lasts))
    for name in scripts.CONTAINERS:
        able = _same(scripts.has_container(name))
        # Kubelet starts it again: what is left of it is no container's.
        found.append(OnMachine(f"{name} killed", _always(scripts.signalled(name, "KILL")), _same("true"), able))
        thaw, lasts = _same(scripts.signalled(name, "CONT")), _same(scripts.still_frozen(name))
        found.append(OnMachine(f"{name} frozen", _always(scripts.signalled(name, "STOP")), thaw, able, lasts))
    for name in scripts.STATIC_PODS:
        back, able = _same(scripts.manifest_back(name)), _same(scripts.has_container(name))
        lasts = _same(scripts.still_there(f"{scripts.KEPT}/{name}.yaml", f"the manifest of {name} is still away"))
        found.append(OnMachine(f"{name} stopped", _always(scripts.manifest_away(name)), back, able, lasts))
    return found


def _of_resources() -> list[FaultKind]:
    found: list[FaultKind] = [
        OnMachine(
            "processors busy",
            _always(scripts.BUSY),
            _same(scripts.IDLE),
            _same(scripts.NEEDS_PROCESSORS),
            _same(scripts.STILL_BUSY),
        ),
        OnMachine(
            "memory full",
            _always(scripts.MEMORY_TAKEN),
            _same(scripts.MEMORY_FREED),
            _same(scripts.NEEDS_MEMORY),
            _same(scripts.STILL_TAKEN),
        ),
    ]
    for name, where in scripts.DIRECTORIES.items():
        found.append(_full(name, where))
        found.append(_out_of_inodes(name, where))
    return found


def _full(name: str, where: Callable[[Environment], str]) -> OnMachine:
    return OnMachine(
        f"{name} full",
        lambda env, _: scripts.filled(where(env)),
        lambda env: scripts.emptied(where(env)),
        lambda env: scripts.bounded(where(env)),
        lambda env: scripts.still_there(f"{where(env)}/{scripts.FULL}", "what fills the disk is still there"),
    )


def _out_of_inodes(name: str, where: Callable[[Environment], str]) -> OnMachine:
    return OnMachine(
        f"{name} out of inodes",
        lambda env, _: scripts.inodes_taken(where(env)),
        lambda env: scripts.inodes_freed(where(env)),
        lambda env: scripts.few_inodes(where(env)),
        lambda env: scripts.still_there(f"{where(env)}/{scripts.FULL}.d", "what takes the inodes is still there"),
    )


KINDS: Mapping[str, FaultKind] = {
    kind.name: kind
    for kind in (
        OfPower("power cut", lambda hypervisor, machine: hypervisor.stop(machine.vmid), _start),
        OfPower("shutdown", lambda hypervisor, machine: hypervisor.shutdown(machine.vmid), _start),
        OfPower("hang", lambda hypervisor, machine: hypervisor.suspend(machine.vmid), _resume),
        OfPower("reboot", lambda hypervisor, machine: hypervisor.reboot(machine.vmid), _start),
        *_of_network(),
        *_of_processes(),
        OfHost("hypervisor lost"),
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
    raise NoSuchFault(f"no fault is called “{name}”; {nearest(name, KINDS)}")
