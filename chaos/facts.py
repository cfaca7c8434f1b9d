"""Facts of a live target that drills go by: who has which part, which timers run, and whether everything is whole."""

from collections import Counter
from collections.abc import Mapping

import requests
from kubernetes.client.exceptions import ApiException

from chaos.target import Facts
from chaos.timers import Timers, grace_s
from environments.model import Role
from provisioning.action import ActionFailed
from provisioning.cluster import REQUEST_TIMEOUT_S, UNAVAILABLE, unready_nodes
from provisioning.ndb import taking_part
from provisioning.session import Session
from provisioning.site import NAMESPACE, SELECTOR, unready_replicas
from steps.arp import who_has
from steps.machines import cards

VISIT_TIMEOUT_S = 10


def read_facts(session: Session) -> Facts:
    """Who has which part just now; raises ApiException, ActionFailed, HypervisorError and NotExercised."""
    environment, hypervisor = session.environment, session.hypervisor
    owners = {
        card.mac: machine.name
        for machine in environment.cluster_machines
        for card in cards(hypervisor.config(machine.vmid)).values()
    }
    answering = who_has(environment.wordpress.vip, session.shell, environment.cluster_machines)
    pods = session.cluster.core.list_namespaced_pod(
        NAMESPACE, label_selector=SELECTOR, _request_timeout=REQUEST_TIMEOUT_S
    )
    arbitrator = session.database.query("SELECT DISTINCT arbitrator FROM ndbinfo.membership")
    members = session.ndb.members
    return Facts(
        environment.machines,
        environment.kubernetes.control_plane_endpoint,
        announcer=next((owners[mac] for mac in answering if mac in owners), None),
        arbitrator=members[int(arbitrator[0][0]) - 1].name if arbitrator and int(arbitrator[0][0]) else None,
        replicas=Counter(pod.spec.node_name for pod in pods.items if pod.spec.node_name),
    )


def read_timers(session: Session) -> Timers:
    """The timers that the target runs with; raises ApiException."""
    first = session.environment.with_role(Role.CONTROL_PLANE)[0]
    manager = session.cluster.core.read_namespaced_pod(
        f"kube-controller-manager-{first.name}", "kube-system", _request_timeout=REQUEST_TIMEOUT_S
    )
    return Timers(
        node_grace_s=grace_s(list(manager.spec.containers[0].command or [])),
        ndb_heartbeat_s=session.environment.ndb.heartbeat_interval_ms / 1000,
    )


def states(session: Session) -> Mapping[str, str]:
    """The target's parts by name, each with its state in a word or two: “whole”, or what it is instead."""
    return {"nodes": _nodes(session), "replicas": _replicas(session), "database": _database(session),
            "site": _site(session)}  # fmt: skip


def _nodes(session: Session) -> str:
    names = {machine.name for machine in session.environment.cluster_machines}
    try:
        found = unready_nodes(session.cluster.core.list_node(_request_timeout=REQUEST_TIMEOUT_S).items, names)
    except (ApiException, *UNAVAILABLE) as error:
        return f"no answer: {type(error).__name__}"
    return "; ".join(f"{name} {state}" for name, state in sorted(found.items())) or "whole"


def _replicas(session: Session) -> str:
    try:
        return next(iter(unready_replicas(session.cluster)), "whole")
    except (ApiException, *UNAVAILABLE) as error:
        return f"no answer: {type(error).__name__}"


def _database(session: Session) -> str:
    try:
        members = session.ndb.show()
    except ActionFailed as error:
        return f"no answer: {error.cause}"
    away = [m.name for m in session.ndb.members if not taking_part(members, session.ndb.node_id(m))]
    return f"away: {', '.join(away)}" if away else "whole"


def _site(session: Session) -> str:
    try:
        reply = requests.get(f"http://{session.environment.wordpress.vip}/", timeout=VISIT_TIMEOUT_S)
    except requests.RequestException as error:
        return f"no answer: {type(error).__name__}"
    return "whole" if reply.ok else f"HTTP {reply.status_code}"
