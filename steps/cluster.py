"""The Kubernetes cluster: its nodes, its workloads, and the members of its etcd."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException
from pytest_bdd import given, then, when

from environments.model import Environment, Machine
from provisioning.addons import METALLB_NAMESPACE, WORKER_LABEL
from provisioning.cluster import REQUEST_TIMEOUT_S, UNAVAILABLE, Cluster, unready_nodes, unready_workloads
from provisioning.poll import NotYet, poll
from provisioning.session import Session
from steps.complaints import none_of, unless
from steps.pods import execute

STEADY_TIMEOUT_S = 180  # MetalLB's speaker needs two tries of 30 s and a pause after a boot
PKI = "/etc/kubernetes/pki/etcd"
ETCDCTL = (
    "etcdctl",
    "--endpoints=https://127.0.0.1:2379",
    f"--cacert={PKI}/ca.crt",
    f"--cert={PKI}/server.crt",
    f"--key={PKI}/server.key",
    "--write-out=json",
)


def etcd_complaints(
    names: set[str],
    members: Sequence[Mapping[str, Any]],
    health: Sequence[Mapping[str, Any]],
    status: Sequence[Mapping[str, Any]],
) -> dict[str, list[str]]:
    """What is wrong with etcd's members, given those expected and etcdctl's three answers. Pure."""
    voters = {str(member.get("name") or member["peerURLs"]) for member in members if not member.get("isLearner")}
    well = {str(row["endpoint"]) for row in health if row.get("health") is True}
    urls = {str(url) for member in members for url in member.get("clientURLs", [])}
    leaders = {int(row["Status"].get("leader", 0)) for row in status}
    return {
        "members": unless(
            voters == names, f"expected {', '.join(sorted(names))}, found {', '.join(sorted(voters)) or 'none'}"
        ),
        "health": [f"expected {url} healthy, and it is not" for url in sorted(urls - well)],
        "leader": [
            *unless(len(status) == len(names), f"expected {len(names)} members to say who leads, found {len(status)}"),
            *unless(
                len(leaders) == 1 and 0 not in leaders, f"expected one leader, found {sorted(leaders)} (0 is none)"
            ),
        ],
    }


def system_namespaces(names: Iterable[str]) -> list[str]:
    """Namespaces of the system: Kubernetes' own, the pod network's, MetalLB's. Pure."""
    return sorted(name for name in names if name.startswith("kube-") or name.endswith("-system"))


def short_of_pods(cluster: Cluster) -> dict[str, list[str]]:
    """For each system namespace, the workloads that are short of Pods."""
    listed = cluster.core.list_namespace(_request_timeout=REQUEST_TIMEOUT_S).items
    names = system_namespaces(namespace.metadata.name for namespace in listed)
    return {name: list(unready_workloads(cluster.apps, name)) for name in names}


def nodes_not_ready(cluster: Cluster, names: set[str]) -> dict[str, str]:
    """Those of `names` that are no Ready nodes, with what they are instead."""
    return unready_nodes(cluster.core.list_node(_request_timeout=REQUEST_TIMEOUT_S).items, names)


@pytest.fixture(scope="session")
def cluster(target: Session) -> Cluster:
    """The API of the target's cluster."""
    return target.cluster


@given("a healthy cluster")
def healthy(cluster: Cluster, environment: Environment) -> None:
    """Nothing is broken that is not whole: all nodes are Ready and no system workload is short of Pods.

    Raises DeadlineExceeded: what was not healthy before says nothing about the fault.
    """
    names = {machine.name for machine in environment.cluster_machines}

    def steady() -> bool:
        try:
            found = [f"node {name} {state}" for name, state in nodes_not_ready(cluster, names).items()]
            found += [line for lines in short_of_pods(cluster).values() for line in lines]
        except (ApiException, *UNAVAILABLE) as error:
            raise NotYet(f"the API does not answer: {type(error).__name__}") from error
        if found:
            raise NotYet("; ".join(found))
        return True

    poll("a healthy cluster to begin with", steady, timeout_s=STEADY_TIMEOUT_S, interval_s=1)


@then("each of them is a Ready node")
def each_is_ready(machines: tuple[Machine, ...], cluster: Cluster) -> None:
    """By the API."""
    found = nodes_not_ready(cluster, {machine.name for machine in machines})
    none_of({m.name: [f"expected Ready True, found {found[m.name]}"] if m.name in found else [] for m in machines})


@then("each of them carries the worker's role label")
def each_is_labelled(machines: tuple[Machine, ...], cluster: Cluster) -> None:
    """The document's label, whose value is empty."""
    nodes = cluster.core.list_node(_request_timeout=REQUEST_TIMEOUT_S).items
    found = {node.metadata.name: node.metadata.labels.get(WORKER_LABEL) for node in nodes}
    none_of(
        {
            m.name: unless(found.get(m.name) == "", f'expected {WORKER_LABEL}="", found {found.get(m.name)!r}')
            for m in machines
        }
    )


@then("no workload of the system is short of Pods")
def system_is_whole(cluster: Cluster) -> None:
    """Deployments and DaemonSets; that those of the document are there at all is part of it."""
    complaints = short_of_pods(cluster)
    daemons = cluster.apps.list_daemon_set_for_all_namespaces(_request_timeout=REQUEST_TIMEOUT_S).items
    deployments = cluster.apps.list_deployment_for_all_namespaces(_request_timeout=REQUEST_TIMEOUT_S).items
    found = {(item.metadata.namespace, item.metadata.name) for item in [*daemons, *deployments]}
    for namespace, name in (
        ("kube-system", "kube-proxy"),
        ("kube-system", "coredns"),
        (METALLB_NAMESPACE, "controller"),
        (METALLB_NAMESPACE, "speaker"),
    ):
        complaints.setdefault(namespace, []).extend(
            unless((namespace, name) in found, f"expected a workload {name}, and there is none")
        )
    none_of(complaints)


@when("etcd is asked for its members", target_fixture="etcd")
def ask_etcd(machines: tuple[Machine, ...], cluster: Cluster) -> dict[str, Any]:
    """The answers of etcdctl in an etcd Pod of one of the machines, by its sub-command."""
    pod = f"etcd-{machines[0].name}"

    def etcdctl(*words: str) -> Any:
        return json.loads(execute(cluster.core, "kube-system", pod, [*ETCDCTL, *words]).stdout)

    return {
        "members": etcdctl("member", "list")["members"],
        "health": etcdctl("endpoint", "health", "--cluster"),
        "status": etcdctl("endpoint", "status", "--cluster"),
    }


@then("they are these machines, all healthy and with one leader")
def etcd_is_whole(machines: tuple[Machine, ...], etcd: dict[str, Any]) -> None:
    """One voting member on each master, no other, and all of them follow the same leader."""
    names = {machine.name for machine in machines}
    none_of(etcd_complaints(names, etcd["members"], etcd["health"], etcd["status"]))
