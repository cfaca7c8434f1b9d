"""Facts of a live target that drills go by: who has which part, which timers run, and whether everything is whole."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import requests
from kubernetes.client.exceptions import ApiException

from chaos.target import Facts
from chaos.timers import Timers, grace_s
from environments.model import Role
from provisioning.action import ActionFailed
from provisioning.cluster import REQUEST_TIMEOUT_S, UNAVAILABLE, Cluster, unready_nodes
from provisioning.hypervisor import HypervisorError, owned
from provisioning.ndb import taking_part
from provisioning.poll import DeadlineExceeded
from provisioning.session import Session
from provisioning.site import NAMESPACE, SELECTOR, unready_replicas
from steps.arp import who_has
from steps.cluster import ETCDCTL
from steps.machines import cards
from steps.pods import execute
from steps.verdict import NotExercised

VISIT_TIMEOUT_S = 10
WHOLE = "whole"
# What a part of the target cannot be asked by, when it is being broken.
SILENT = (ActionFailed, ApiException, DeadlineExceeded, HypervisorError, NotExercised, OSError, *UNAVAILABLE)


@dataclass(frozen=True)
class Live:
    """A target as it is now."""

    session: Session
    cluster: Cluster

    def facts(self) -> Facts:
        """Who has which part; raises ApiException, ActionFailed, HypervisorError and NotExercised."""
        environment = self.session.environment
        pods = self.cluster.core.list_namespaced_pod(
            NAMESPACE, label_selector=SELECTOR, _request_timeout=REQUEST_TIMEOUT_S
        )
        arbitrator = self.session.database.query("SELECT DISTINCT arbitrator FROM ndbinfo.membership")
        members = self.session.ndb.members
        return Facts(
            environment.machines,
            environment.kubernetes.control_plane_endpoint,
            announcer=next(iter(self._announcers()), None),
            arbitrator=members[int(arbitrator[0][0]) - 1].name if arbitrator and int(arbitrator[0][0]) else None,
            etcd_leader=self._etcd_leader(),
            replicas=Counter(pod.spec.node_name for pod in pods.items if pod.spec.node_name),
        )

    def timers(self) -> Timers:
        """The timers that the target runs with; raises ApiException."""
        environment = self.session.environment
        first = environment.with_role(Role.CONTROL_PLANE)[0]
        manager = self.cluster.core.read_namespaced_pod(
            f"kube-controller-manager-{first.name}", "kube-system", _request_timeout=REQUEST_TIMEOUT_S
        )
        return Timers(
            node_grace_s=grace_s(list(manager.spec.containers[0].command or [])),
            ndb_heartbeat_s=environment.ndb.heartbeat_interval_ms / 1000,
        )

    def states(self) -> Mapping[str, str]:
        """The target's parts by name, each with its state in a word or two: “whole”, or what it is instead."""
        parts: Mapping[str, Callable[[], str]] = {
            "machines": self._machines,
            "nodes": self._nodes,
            "replicas": self._replicas,
            "database": self._database,
            "site": self._site,
        }
        return self._asked(parts)

    def owners(self) -> Mapping[str, str]:
        """Who has which part, for the record; slower to ask than `states`."""
        announcing = {"announcer": lambda: " and ".join(self._announcers()) or "nobody"}
        return self._asked({**announcing, "etcd leader": self._etcd_leader})

    def _asked(self, parts: Mapping[str, Callable[[], str]]) -> Mapping[str, str]:
        with ThreadPoolExecutor(len(parts)) as pool:
            return dict(zip(parts, pool.map(_told, parts.values()), strict=True))

    def _machines(self) -> str:
        environment = self.session.environment
        found = owned(environment, self.session.hypervisor.vms())
        away = [m.name for m in environment.machines if m.vmid not in found or found[m.vmid].status != "running"]
        return f"away: {', '.join(away)}" if away else WHOLE

    def _nodes(self) -> str:
        names = {machine.name for machine in self.session.environment.cluster_machines}
        listed = self.cluster.core.list_node(_request_timeout=REQUEST_TIMEOUT_S).items
        return "; ".join(f"{name} {state}" for name, state in sorted(unready_nodes(listed, names).items())) or WHOLE

    def _replicas(self) -> str:
        return next(iter(unready_replicas(self.cluster)), WHOLE)

    def _database(self) -> str:
        ndb = self.session.ndb
        members = ndb.show()
        away = [member.name for member in ndb.members if not taking_part(members, ndb.node_id(member))]
        return f"away: {', '.join(away)}" if away else WHOLE

    def _site(self) -> str:
        reply = requests.get(f"http://{self.session.environment.wordpress.vip}/", timeout=VISIT_TIMEOUT_S)
        return WHOLE if reply.ok else f"HTTP {reply.status_code}"

    def _announcers(self) -> list[str]:
        environment, hypervisor = self.session.environment, self.session.hypervisor
        owners = {
            card.mac: machine.name
            for machine in environment.cluster_machines
            for card in cards(hypervisor.config(machine.vmid)).values()
        }
        answering = who_has(environment.wordpress.vip, self.session.shell, environment.cluster_machines)
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
    except SILENT as error:
        return f"no answer: {type(error).__name__}"
