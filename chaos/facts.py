"""Facts of a live target that drills go by: who has which part, which timers run, and whether everything is whole."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from itertools import chain
from typing import Any

import requests
from kubernetes.client.exceptions import ApiException
from websocket import WebSocketException

from certificate.verdict import NotExercised
from chaos.history import SILENCE
from chaos.target import Facts
from chaos.timers import Timers, dns_ttl_s, grace_s, tolerated_s
from environments.model import Role
from provisioning.account import Account
from provisioning.action import ActionFailed
from provisioning.addons import SYSTEM_NAMESPACES
from provisioning.cluster import (
    REQUEST_TIMEOUT_S,
    UNAVAILABLE,
    Cluster,
    nodes_under_pressure,
    unready_nodes,
    unready_workloads,
)
from provisioning.duration import duration_s
from provisioning.hypervisor import HypervisorError, Vm, owned
from provisioning.ndb import Ndb, taking_part
from provisioning.poll import DeadlineExceeded, NotYet
from provisioning.session import Session
from provisioning.site import site_pods, unready_replicas
from steps.arp import ROUNDS, who_has
from steps.cluster import ETCDCTL
from steps.machines import cards
from steps.pods import execute

VISIT_TIMEOUT_S = 10
FEW_ROUNDS = 2  # each listens for 0.4 s, and a drill waits for them; the record that goes on beside it asks in full
WHOLE, AWAY = "whole", "away: "
CLOCKS_S = 10.0  # a node's clock, the runner's and the hypervisor's list agree within
NDB_TIMERS = (
    "SELECT DISTINCT param_name, config_value FROM ndbinfo.config_params JOIN ndbinfo.config_values"
    " ON config_param = param_number WHERE param_name IN ('HeartbeatIntervalDbDb', 'ArbitrationTimeout')"
)
# The kernel's server tells it, NFS-Ganesha has it in its configuration; seconds.
NFS_GRACE = (
    "cat /proc/fs/nfsd/nfsv4gracetime 2>/dev/null ||"
    r" sed -n 's/^ *Grace_Period *= *\([0-9]*\) *;.*/\1/p' /etc/ganesha/ganesha.conf"
)


class Unreadable(Exception):
    """A part of the target answered with something that cannot be read; the message says which error that made."""


# What a part of the target cannot be asked by, when it is being broken.
SILENT = (
    ActionFailed,
    ApiException,
    DeadlineExceeded,
    HypervisorError,
    NotExercised,
    OSError,
    Unreadable,
    WebSocketException,
    *UNAVAILABLE,
)
# What comes of half an answer.
GARBLED = (LookupError, TypeError, ValueError)


@contextmanager
def read_whole() -> Iterator[None]:
    """Half an answer is none: raises Unreadable."""
    try:
        yield
    except GARBLED as error:
        raise Unreadable(f"an answer that cannot be read: {type(error).__name__}: {error}") from error


def from_before(pods: Iterable[Mapping[str, Any]], booted_s: Mapping[str, float]) -> list[str]:
    """Pods of which the API tells as they were before their node booted, as `name on node`. Pure.

    `pods` in the API's JSON; when each node booted in seconds of the wall clock.
    """
    found = []
    for pod in pods:
        name, node = pod["metadata"]["name"], pod["spec"].get("nodeName")
        if node not in booted_s or pod["metadata"].get("deletionTimestamp"):
            continue
        running = [status["state"].get("running") for status in pod["status"].get("containerStatuses", [])]
        started_s = [datetime.fromisoformat(one["startedAt"]).timestamp() for one in running if one]
        if started_s and min(started_s) < booted_s[node] - CLOCKS_S:
            found.append(f"{name} on {node}")
    return sorted(found)


def stale_endpoints(slices: Iterable[Mapping[str, Any]], pods: Iterable[Mapping[str, Any]]) -> list[str]:
    """Addresses that Services take for those of ready Pods, which have them no more, as `service at address`. Pure.

    Both in the API's JSON.
    """
    held: dict[tuple[str, str], set[str]] = {
        (pod["metadata"]["namespace"], pod["metadata"]["name"]): {one["ip"] for one in pod["status"].get("podIPs", [])}
        for pod in pods
    }
    found = set()
    for one in slices:
        namespace, labels = one["metadata"]["namespace"], one["metadata"].get("labels", {})
        service = labels.get("kubernetes.io/service-name", one["metadata"]["name"])
        for endpoint in one.get("endpoints") or []:
            behind = endpoint.get("targetRef") or {}
            if behind.get("kind") == "Pod" and endpoint["conditions"].get("ready"):
                gone = {*endpoint["addresses"]} - held.get((namespace, behind["name"]), set())
                found |= {f"{service} at {address}" for address in gone}
    return sorted(found)


def items_of(ask: Callable[..., Any]) -> Sequence[Mapping[str, Any]]:
    """What a call of the API lists, in its JSON: making objects of it would take the drill's processor."""
    told = json.loads(ask(_preload_content=False, _request_timeout=REQUEST_TIMEOUT_S).data)
    items: Sequence[Mapping[str, Any]] = told["items"]
    return items


@dataclass(frozen=True)
class Live:
    """A target as it is now."""

    session: Session
    cluster: Cluster

    @cached_property
    def ndb(self) -> Ndb:
        """Its database cluster, asked for its members' numbers once."""
        return self.session.ndb

    @read_whole()
    def facts(self) -> Facts:
        """Who has which part; raises SILENT."""
        environment = self.session.environment
        with ThreadPoolExecutor() as pool:
            announcers, arbitrator = pool.submit(self._announcers, FEW_ROUNDS), pool.submit(self._arbitrator)
            leader, replicas = pool.submit(self._etcd_leader), pool.submit(self._replicas_on)
        return Facts(
            environment.machines,
            environment.kubernetes.control_plane_endpoint,
            announcer=next(iter(announcers.result()), None),
            arbitrator=arbitrator.result(),
            etcd_leader=leader.result(),
            replicas=replicas.result(),
        )

    @read_whole()
    def timers(self) -> Timers:
        """The timers that the target runs with; raises SILENT.

        Each is asked of the part that goes by it. What none of them tells has the default of its part.
        """
        environment, core = self.session.environment, self.cluster.core
        first = environment.with_role(Role.CONTROL_PLANE)[0]
        (files,) = environment.with_role(Role.NFS)
        within = {"_request_timeout": REQUEST_TIMEOUT_S}
        with ThreadPoolExecutor() as pool:
            told = pool.submit(self.session.database.query, NDB_TIMERS)
            nfs = pool.submit(self.session.shell.run, files, NFS_GRACE, timeout_s=VISIT_TIMEOUT_S)
            lasts = pool.submit(self._access_session_s)
            manager = core.read_namespaced_pod(f"kube-controller-manager-{first.name}", "kube-system", **within)
            names = core.read_namespaced_config_map("coredns", "kube-system", **within)
            replicas = site_pods(self.cluster)
        set_ms, grace = {row[0]: int(row[1]) for row in told.result()}, nfs.result().stdout.strip()
        return replace(
            Timers(),
            node_grace_s=grace_s(list(manager.spec.containers[0].command or [])),
            toleration_s=tolerated_s(replicas[0].spec.tolerations or []) if replicas else Timers.toleration_s,
            ndb_heartbeat_s=set_ms["HeartbeatIntervalDbDb"] / 1000,
            arbitration_s=set_ms["ArbitrationTimeout"] / 1000,
            nfs_grace_s=float(grace) if grace.isdigit() else Timers.nfs_grace_s,
            dns_ttl_s=dns_ttl_s(names.data["Corefile"]),
            access_session_s=lasts.result(),
        )

    def _arbitrator(self) -> str | None:
        told = self.session.database.query("SELECT DISTINCT arbitrator FROM ndbinfo.membership")
        number = int(told[0][0]) if told else 0
        return next((m.name for m in self.ndb.members if number and self.ndb.node_id(m) == number), None)

    def _replicas_on(self) -> Counter[str]:
        return Counter(pod.spec.node_name for pod in site_pods(self.cluster) if pod.spec.node_name)

    def _access_session_s(self) -> float:
        """How long a login of the administration lasts; nothing where no application guards it."""
        environment = self.session.environment
        for found in Account(environment).applications_over(environment.edge.public_host):
            if found.session_duration:
                return duration_s(found.session_duration)
        return 0.0

    def states(self) -> Mapping[str, str]:
        """The target's parts by name, each with its state in a word or two: “whole”, or what it is instead."""
        with ThreadPoolExecutor(2) as pool:
            vms, pods = pool.submit(self._vms), pool.submit(items_of, self.cluster.core.list_pod_for_all_namespaces)
            parts: Mapping[str, Callable[[], str]] = {
                "machines": lambda: self._machines(vms.result()),
                "nodes": self._nodes,
                "restarts": lambda: self._restarts(vms.result(), pods.result()),
                "endpoints": lambda: self._endpoints(pods.result()),
                "replicas": self._replicas,
                "add-ons": self._addons,
                "database": self._database,
                "site": self._site,
            }
            return self._asked(parts)

    def whole(self) -> bool:
        """True, for `poll`; raises NotYet with the parts that are not whole."""
        if found := [f"{name}: {state}" for name, state in self.states().items() if state != WHOLE]:
            raise NotYet("; ".join(found))
        return True

    def owners(self) -> Mapping[str, str]:
        """Who has which part, for the record; slower to ask than `states`."""
        announcing = {"announcer": lambda: " and ".join(self._announcers()) or "nobody"}
        return self._asked({**announcing, "etcd leader": self._etcd_leader})

    def _asked(self, parts: Mapping[str, Callable[[], str]]) -> Mapping[str, str]:
        with ThreadPoolExecutor(len(parts)) as pool:
            return dict(zip(parts, pool.map(_told, parts.values()), strict=True))

    def _vms(self) -> Mapping[int, Vm]:
        return owned(self.session.environment, self.session.hypervisor.vms())

    def _machines(self, found: Mapping[int, Vm]) -> str:
        environment = self.session.environment
        away = [m.name for m in environment.machines if m.vmid not in found or found[m.vmid].status != "running"]
        return f"{AWAY}{', '.join(away)}" if away else WHOLE

    def _nodes(self) -> str:
        names = {machine.name for machine in self.session.environment.cluster_machines}
        listed = self.cluster.core.list_node(_request_timeout=REQUEST_TIMEOUT_S).items
        found = nodes_under_pressure(listed, names) | unready_nodes(listed, names)
        return "; ".join(f"{name} {state}" for name, state in sorted(found.items())) or WHOLE

    def _restarts(self, found: Mapping[int, Vm], pods: Sequence[Mapping[str, Any]]) -> str:
        """Whether what ran on a machine that lost its power has been started again.

        The API tells of it as it was until the machine's kubelet says otherwise: a node that was away for less than its
        grace period was Ready all the time.
        """
        now_s = time.time()
        booted_s = {
            machine.name: now_s - vm.uptime_s
            for machine in self.session.environment.cluster_machines
            if (vm := found.get(machine.vmid)) and vm.status == "running"
        }
        left = from_before(pods, booted_s)
        return f"not started since the boot: {', '.join(left)}" if left else WHOLE

    def _endpoints(self, pods: Sequence[Mapping[str, Any]]) -> str:
        """Whether Services route to addresses that Pods have; the controller that lost its API is told late of both."""
        slices = items_of(self.cluster.discovery.list_endpoint_slice_for_all_namespaces)
        stale = stale_endpoints(slices, pods)
        return f"no Pod's any more: {', '.join(stale)}" if stale else WHOLE

    def _replicas(self) -> str:
        return next(iter(unready_replicas(self.cluster)), WHOLE)

    def _addons(self) -> str:
        found = (unready_workloads(self.cluster.apps, namespace) for namespace in SYSTEM_NAMESPACES)
        return next(chain.from_iterable(found), WHOLE)

    def _database(self) -> str:
        members = self.ndb.show()
        away = [m.name for m in self.ndb.members if not taking_part(members, self.ndb.node_id(m, members))]
        return f"{AWAY}{', '.join(away)}" if away else WHOLE

    def _site(self) -> str:
        reply = requests.get(f"http://{self.session.environment.wordpress.vip}/", timeout=VISIT_TIMEOUT_S)
        return WHOLE if reply.ok else f"HTTP {reply.status_code}"

    def _announcers(self, rounds: int = ROUNDS) -> list[str]:
        environment, hypervisor = self.session.environment, self.session.hypervisor
        owners = {
            card.mac: machine.name
            for machine in environment.cluster_machines
            for card in cards(hypervisor.config(machine.vmid)).values()
        }
        answering = who_has(environment.wordpress.vip, self.session.shell, environment.cluster_machines, rounds)
        return sorted(owners[mac] for mac in answering if mac in owners)

    def _etcd_leader(self) -> str:
        """By the member of the API's own machine."""
        pod = f"etcd-{self.session.environment.kubernetes.control_plane_endpoint}"
        told = [
            json.loads(execute(self.cluster.core, "kube-system", pod, [*ETCDCTL, *words]).stdout)
            for words in (("member", "list"), ("endpoint", "status"))
        ]
        leader = told[1][0]["Status"]["leader"]
        return next((str(member["name"]) for member in told[0]["members"] if member["ID"] == leader), "nobody")


def _told(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except (*SILENT, *GARBLED) as error:
        return f"{SILENCE}{type(error).__name__}"
