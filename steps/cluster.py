"""The Kubernetes cluster: its nodes, its workloads, and the members of its etcd."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException
from pytest_bdd import given, then, when

from environments.model import Environment, Machine
from provisioning.addons import DNS_LABEL, METALLB_NAMESPACE, WORKER_LABEL
from provisioning.cluster import REQUEST_TIMEOUT_S, UNAVAILABLE, Cluster, unready_nodes, unready_workloads
from provisioning.poll import NotYet, poll
from provisioning.session import Session
from steps.complaints import none_of, unless
from steps.pods import condition, execute

STEADY_TIMEOUT_S = 180  # MetalLB's speaker needs two tries of 30 s and a pause after a boot
JOIN_LIFE = timedelta(days=1)
TOKEN_TYPE = "bootstrap.kubernetes.io/token"
UPLOADED_CERTIFICATES = "kubeadm-certs"
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


@then("each of them takes new Pods")
def each_takes_pods(machines: tuple[Machine, ...], cluster: Cluster) -> None:
    """Neither cordoned nor tainted against them: such a node is Ready, and takes over nobody's work."""
    nodes = {node.metadata.name: node for node in cluster.core.list_node(_request_timeout=REQUEST_TIMEOUT_S).items}
    none_of(
        {
            m.name: [
                f"expected it to take new Pods, found the taint {taint.key}:{taint.effect}"
                for taint in (nodes[m.name].spec.taints or [] if m.name in nodes else [])
                if taint.effect in ("NoSchedule", "NoExecute")
            ]
            for m in machines
        }
    )


def endless(token: Mapping[str, str], now: datetime) -> str:
    """Why a bootstrap token, its Secret's data decoded, lasts longer than it may; empty when it does not. Pure.

    Kubernetes deletes a token that has expired, and never one that names no end; kubeadm's own last a day.
    """
    if "expiration" not in token:
        return "it names no end"
    left = datetime.fromisoformat(token["expiration"]) - now
    return f"it lasts for another {left}" if left > JOIN_LIFE else ""


def secrets_of(cluster: Cluster) -> dict[str, Any]:
    """The Secrets of kube-system by name."""
    found = cluster.core.list_namespaced_secret("kube-system", _request_timeout=REQUEST_TIMEOUT_S).items
    return {secret.metadata.name: secret for secret in found}


def expiry(secret: Any) -> str:
    """Why a Secret that nodes join by lasts longer than it may."""
    data = {key: base64.b64decode(value).decode() for key, value in (secret.data or {}).items()}
    return endless(data, datetime.now(UTC))


@then("every token that nodes join by expires within a day")
def tokens_expire(cluster: Cluster) -> None:
    """By the Secrets that kubeadm keeps them in; that there is none now is well, too."""
    tokens = [secret for secret in secrets_of(cluster).values() if secret.type == TOKEN_TYPE]
    told = {secret.metadata.name: expiry(secret) for secret in tokens}
    none_of({"tokens": [f"expected {name} to expire within {JOIN_LIFE}: {why}" for name, why in told.items() if why]})


@then("no certificates for further masters outlive their token")
def certificates_expire(cluster: Cluster) -> None:
    """`kubeadm init --upload-certs` hangs their Secret on a token's, with which it goes after two hours."""
    secrets = secrets_of(cluster)
    left = secrets.get(UPLOADED_CERTIFICATES)
    tokens = [secrets.get(owner.name) for owner in (left.metadata.owner_references or [] if left else [])]
    bound = left is None or any(token is not None and not expiry(token) for token in tokens)
    assert bound, f"expected {UPLOADED_CERTIFICATES} to go with a token that expires, found {tokens or 'no token'}"


@then("Helm on the first master knows the declared repositories and no others")
def charts(target: Session, environment: Environment) -> None:
    """By Helm's own list."""
    master = environment.machine(environment.kubernetes.control_plane_endpoint)
    done = target.shell.run(master, "helm repo list --output json", timeout_s=30)
    found = {row["name"]: row["url"] for row in json.loads(done.stdout)} if done.exit_code == 0 else {}
    wanted = {name: str(url) for name, url in environment.helm.repositories.items()}
    assert found == wanted, f"expected {wanted}, found {found or done.stderr.strip()}"


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


@then("Ready Pods on several machines answer for the cluster's names")
def names_outlive_a_machine(cluster: Cluster) -> None:
    """By the Pods that CoreDNS's Service leads to."""
    pods = cluster.core.list_namespaced_pod("kube-system", label_selector=DNS_LABEL, _request_timeout=REQUEST_TIMEOUT_S)
    nodes = sorted({pod.spec.node_name for pod in pods.items if condition(pod) == "Ready"})
    assert len(nodes) > 1, f"expected CoreDNS on several machines, found it on {', '.join(nodes) or 'none'}"


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
