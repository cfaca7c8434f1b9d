"""The timers that decide how long an outage may last, and the budgets that follow from them. Pure.

Defaults are those of Kubernetes 1.30, MetalLB 0.13 and NDB 8; what a target sets otherwise is read from it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Protocol

from provisioning.duration import duration_s

HELD = "held for"


class Toleration(Protocol):
    """As Kubernetes' client has it."""

    key: str | None
    toleration_seconds: int | None


@dataclass(frozen=True)
class Timers:
    """What a target's parts go by; seconds."""

    # kube-controller-manager, --node-monitor-grace-period and --node-monitor-period
    node_grace_s: float = 40.0
    node_monitor_s: float = 5.0
    # kube-apiserver, --default-not-ready-toleration-seconds
    toleration_s: float = 300.0
    # kubelet, nodeStatusUpdateFrequency; how often its eviction manager looks
    heartbeat_s: float = 10.0
    eviction_look_s: float = 10.0
    # hashicorp/memberlist's LAN defaults: what MetalLB's speakers watch each other by
    probe_s: float = 1.0
    probe_timeout_s: float = 0.5
    suspicion_multiplier: int = 4
    # NDB, HeartbeatIntervalDbDb and ArbitrationTimeout
    ndb_heartbeat_s: float = 5.0
    arbitration_s: float = 7.5
    # MySQL Server as a systemd unit, RestartSec; what a container's kubelet waits first
    restart_s: float = 2.0
    crash_backoff_s: float = 10.0
    # A file server's grace period: nobody's locks are given out before (kernel's default; NFS-Ganesha's own setting)
    nfs_grace_s: float = 90.0
    # CoreDNS, ttl of its kubernetes plugin: a name in the cluster may be remembered as long
    dns_ttl_s: float = 5.0
    # Cloudflare Access, session_duration of the application: who logged in stays in as long
    access_session_s: float = 86400.0
    # firmware, kernel, systemd, sshd
    boot_s: float = 60.0
    # MetalLB's documentation: a takeover that takes longer is a bug
    takeover_s: float = 10.0

    def __str__(self) -> str:
        return ", ".join(f"{name.removesuffix('_s')} {value:g}" for name, value in asdict(self).items())


@dataclass(frozen=True)
class Budget:
    """How long an outage may last, by its parts: each is a timer or a figure with its source.

    `silence` is what is allowed of answering nobody, where that is less than of failing some. `back` is what may be
    lost once more when the fault is taken back.
    """

    parts: Mapping[str, float]
    silence: "Budget | None" = None
    back: "Budget | None" = None

    @property
    def total_s(self) -> float:
        """All of it."""
        return sum(self.parts.values())

    @property
    def held_s(self) -> float:
        """What of it is over when the fault is taken back."""
        return self.parts.get(HELD, 0.0)

    def __str__(self) -> str:
        told = " + ".join(f"{name} {seconds:g} s" for name, seconds in self.parts.items()) or "nothing is allowed"
        silence = f"; of silence, {self.silence}" if self.silence else ""
        return f"{told}{silence}{f'; taken back, {self.back}' if self.back else ''}"


def _budget(**parts: float) -> Budget:
    return Budget(MappingProxyType({name.replace("_", " "): seconds for name, seconds in parts.items()}))


def grace_s(command: list[str]) -> float:
    """After how long a silent node is NotReady, by the command line of a controller manager. Pure."""
    for word in command:
        if word.startswith("--node-monitor-grace-period="):
            return duration_s(word.partition("=")[2])
    return Timers.node_grace_s


def tolerated_s(tolerations: Sequence[Toleration]) -> float:
    """How long a Pod stays on a node that does not answer; for ever where nothing bounds it. Pure."""
    for one in tolerations:
        if one.key == "node.kubernetes.io/unreachable":
            return math.inf if one.toleration_seconds is None else float(one.toleration_seconds)
    return Timers.toleration_s


def dns_ttl_s(corefile: str) -> float:
    """The time to live of names in the cluster, by CoreDNS's configuration. Pure."""
    found = re.search(r"^\s*ttl\s+(\d+)\s*$", corefile, re.MULTILINE)
    return float(found[1]) if found else Timers.dns_ttl_s


def suspicion_s(timers: Timers, speakers: int) -> float:
    """How long a silent speaker is suspected before it is called dead, and its address taken over.

    memberlist, suspicionTimeout: multiplier x log10(max(10, n)) x probe interval.
    """
    scale = max(1.0, math.log10(max(1, speakers)))
    return timers.suspicion_multiplier * scale * timers.probe_s


def address_takeover(timers: Timers, speakers: int) -> Budget:
    """The announcer of a virtual address falls silent: found out, suspected, declared dead; then another announces.

    Until its turn comes a peer may be probed last of all; the gratuitous ARP that follows is at once.
    """
    return _budget(
        a_round_of_probes=max(1, speakers - 1) * timers.probe_s,
        probe_timeout=timers.probe_timeout_s,
        suspicion=suspicion_s(timers, speakers),
        first_packets_sent_again=1.0,
    )


def endpoints_dropped(timers: Timers) -> Budget:
    """A node falls silent: its Pods are taken out of their Services once it is NotReady, not before."""
    return _budget(
        node_grace_period=timers.node_grace_s,
        a_look_of_the_controller=timers.node_monitor_s,
        rules_written=2.0,
    )


def replaced_elsewhere(timers: Timers) -> Budget:
    """A node stays silent: its Pods are evicted, and others are started where there is room."""
    return Budget({**endpoints_dropped(timers).parts, "toleration": timers.toleration_s})


def evicted_for_room(timers: Timers) -> Budget:
    """A node's disk is full: kubelet ends replicas at once, for a hard threshold has no grace, and they are missed.

    Kubernetes, node-pressure eviction: it looks every 10 s, at figures that may be as old, and ends one Pod a look.
    Those that others have still are sent to a replica that is gone until every node has written its rules.
    """
    budget = _budget(
        figures_as_old_as_a_look=timers.eviction_look_s,
        a_look=timers.eviction_look_s,
        another_Pod_first=timers.eviction_look_s,
        rules_written=2.0,
    )
    return replace(budget, silence=_budget(rules_written=2.0))


def data_node_silent(timers: Timers) -> Budget:
    """An NDB data node without power, or hung: four heartbeats are missed, then the arbitrator is asked.

    NDB's manual, HeartbeatIntervalDbDb: declared dead after the fourth missed one; sent one interval after another.
    """
    return _budget(
        four_missed_heartbeats=4 * timers.ndb_heartbeat_s,
        the_interval_under_way=timers.ndb_heartbeat_s,
        arbitration=timers.arbitration_s,
    )


def data_node_killed(timers: Timers) -> Budget:
    """An NDB data node whose process dies: its sockets close, and its peers know (measured here: 0.41 s).

    When it joins again, statements under way meet a temporary error once more (1204, distribution changed); they are
    few, and tried again by whoever heeds NDB's manual. Nobody is answered for less than it takes to come back: else it
    were no stand-in that answers.
    """
    budget = _budget(takeover=2.0, pause_before_the_restart=timers.restart_s, joining_again=10.0)
    return replace(budget, silence=_budget(takeover=2.0, distribution_changed=5.0))


def data_node_full(timers: Timers, hold_s: float) -> Budget:
    """An NDB data node that cannot write ends itself, and at every start again while that lasts; then it joins."""
    killed = data_node_killed(timers)
    return replace(killed, parts={HELD: hold_s, **killed.parts})


def while_away(hold_s: float, **afterwards: float) -> Budget:
    """What has no stand-in is away as long as it is held, and until it is up again."""
    return Budget({HELD: hold_s, **_budget(**afterwards).parts})


def machine_back(live: Timers, hold_s: float, **afterwards: float) -> Budget:
    """A machine without a stand-in: away, booting, and its service starting."""
    return while_away(hold_s, boot=live.boot_s, **afterwards)


def node_back(live: Timers) -> Mapping[str, float]:
    """What a node may take from its boot to serving.

    Containers that start too early are tried again after 10, 20 and 40 s; a node that was NotReady in between becomes
    Ready with its next status.
    """
    return {
        "restart_back_off": 7 * live.crash_backoff_s,
        "node_grace_period": live.node_grace_s,
        "two_heartbeats": 2 * live.heartbeat_s,
        "takeover_of_the_address": live.takeover_s,
    }


def longest(*budgets: Budget) -> Budget:
    """Of several that run at once."""
    return max(budgets, key=lambda budget: budget.total_s, default=NOTHING)


def restarted(timers: Timers, start_s: float) -> Budget:
    """A service that its machine starts again: the unit's pause, and the start itself."""
    return _budget(pause_before_the_restart=timers.restart_s, start=start_s)


NOTHING = Budget(MappingProxyType({}))
