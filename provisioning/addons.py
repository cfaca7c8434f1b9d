"""What runs on the cluster before any site does: labels, the pod network, MetalLB with its pool."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import requests
import yaml
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from environments.model import Environment, Manifest, Role
from provisioning.action import ActionFailed
from provisioning.cluster import (
    REQUEST_TIMEOUT_S,
    UNAVAILABLE,
    Cluster,
    kind_of,
    name_of,
    unready_nodes,
    unready_workloads,
)
from provisioning.poll import DeadlineExceeded, NotYet, poll

READY_TIMEOUT_S = 600
WORKER_LABEL = "node-role.kubernetes.io/worker"
METALLB_NAMESPACE = "metallb-system"
SYSTEM_NAMESPACES = ("kube-system", "kube-flannel", METALLB_NAMESPACE)
DNS_LABEL = "k8s-app=kube-dns"  # kubeadm's CoreDNS keeps the label of the one before it
CONFIG_DIGEST = "haproof/config"  # annotation of kube-proxy's Pods: another value makes other Pods


def fetch(manifest: Manifest) -> list[dict[str, Any]]:
    """The documents of a pinned manifest; raises ActionFailed when it cannot be had or is another than pinned."""
    try:
        reply = requests.get(str(manifest.url), timeout=60)
        reply.raise_for_status()
    except requests.RequestException as error:
        raise ActionFailed(f"the manifest {manifest.url} cannot be read: {error}") from error
    digest = hashlib.sha256(reply.content).hexdigest()
    if digest != manifest.sha256:
        raise ActionFailed(
            f"the manifest {manifest.url} has the digest {digest}, not the pinned {manifest.sha256}; "
            "nothing was applied: see what changed there before pinning another"
        )
    return [without_ca_bundles(document) for document in yaml.safe_load_all(reply.text) if document]


def without_ca_bundles(value: Any) -> Any:
    """A document without `caBundle`: manifests ship a placeholder, which the controller replaces by its own. Pure.

    To apply the placeholder again would cut the API off from the controller's webhooks.
    """
    if isinstance(value, dict):
        return {key: without_ca_bundles(inner) for key, inner in value.items() if key != "caBundle"}
    if isinstance(value, list):
        return [without_ca_bundles(inner) for inner in value]
    return value


@dataclass(frozen=True)
class ManifestApplied:
    """A pinned manifest is on the cluster as it stands."""

    cluster: Cluster
    manifest: Manifest
    name: str
    reachable: Callable[[], bool]

    @cached_property
    def _documents(self) -> list[dict[str, Any]]:
        return fetch(self.manifest)

    def pending(self) -> Sequence[str]:
        """A line for each document that the cluster does not hold as it stands."""
        if not self.reachable():
            return [f"apply {self.manifest.url}"]
        return [f"apply {kind_of(d)} {name_of(d)}" for d in self.cluster.differing(self._documents)]

    def apply(self) -> None:
        """Apply all documents; raises ActionFailed when the API keeps refusing."""
        eventually(f"{self.name} accepted", lambda: self.cluster.apply(self._documents))


def eventually(what: str, work: Callable[[], None], timeout_s: float = 180) -> None:
    """Do `work` again while it says NotYet; raises ActionFailed at the deadline."""

    def attempt() -> bool:
        try:
            work()
        except UNAVAILABLE as error:
            raise NotYet(f"the API does not answer: {error}") from error
        return True

    try:
        poll(what, attempt, timeout_s=timeout_s, interval_s=1)
    except DeadlineExceeded as error:
        raise ActionFailed(str(error)) from error


@dataclass(frozen=True)
class ApiAnswers:
    """The Kubernetes API says that it is ready, as it does some time after its machines have started."""

    cluster: Cluster
    reachable: Callable[[], bool]
    name: str = "Kubernetes API"

    def _state(self) -> str:
        try:
            reply = self.cluster.api.call_api(
                "/readyz", "GET", auth_settings=["BearerToken"], response_type="str", _request_timeout=5
            )
        except ApiException as error:
            return f"answers {error.status}"
        except UNAVAILABLE as error:
            return f"does not answer ({type(error).__name__})"
        return str(reply[0])

    def pending(self) -> Sequence[str]:
        """One line unless it is ready."""
        state = self._state() if self.reachable() else "there is none yet"
        return [] if state == "ok" else [f"wait for the API: {state}"]

    def apply(self) -> None:
        """Wait; raises ActionFailed with its last state at the deadline."""

        def ready() -> bool:
            state = self._state()
            if state != "ok":
                raise NotYet(state)
            return True

        try:
            poll("the Kubernetes API is ready", ready, timeout_s=READY_TIMEOUT_S, interval_s=0.5)
        except DeadlineExceeded as error:
            raise ActionFailed(
                f"{error}; two etcd members must both run, so look at both masters: crictl ps -a, journalctl -u kubelet"
            ) from error


@dataclass(frozen=True)
class WorkersLabelled:
    """Every worker carries the role label, which kubeadm leaves to people."""

    cluster: Cluster
    reachable: Callable[[], bool]
    name: str = "worker labels"

    def pending(self) -> Sequence[str]:
        """A line for each worker without the label."""
        workers = {machine.name for machine in self.cluster.environment.with_role(Role.WORKER)}
        if self.reachable():
            nodes = self.cluster.core.list_node(_request_timeout=REQUEST_TIMEOUT_S).items
            workers -= {node.metadata.name for node in nodes if node.metadata.labels.get(WORKER_LABEL) == ""}
        return [f"label {name}" for name in sorted(workers)]

    def apply(self) -> None:
        """Set the label on every worker."""
        for machine in self.cluster.environment.with_role(Role.WORKER):
            self.cluster.core.patch_node(machine.name, {"metadata": {"labels": {WORKER_LABEL: ""}}})


@dataclass(frozen=True)
class StrictArp:
    """kube-proxy's strictARP is true, as the document sets it; it matters in IPVS mode only."""

    cluster: Cluster
    reachable: Callable[[], bool]
    name: str = "strictARP"

    def _config(self) -> str:
        return str(self.cluster.core.read_namespaced_config_map("kube-proxy", "kube-system").data["config.conf"])

    def _started_with(self) -> str | None:
        """The digest of the configuration that kube-proxy was last let start with."""
        template = self.cluster.apps.read_namespaced_daemon_set("kube-proxy", "kube-system").spec.template
        return (template.metadata.annotations or {}).get(CONFIG_DIGEST)

    def pending(self) -> Sequence[str]:
        """One line unless it is so, and kube-proxy was started with it."""
        if not self.reachable():
            return ["set strictARP in kube-proxy's ConfigMap and restart kube-proxy"]
        config = self._config()
        if (yaml.safe_load(config).get("ipvs") or {}).get("strictARP") is not True:
            return ["set strictARP in kube-proxy's ConfigMap and restart kube-proxy"]
        if self._started_with() != digest_of(config):
            return ["restart kube-proxy, for its ConfigMap changed"]
        return []

    def apply(self) -> None:
        """Change that one key and let kube-proxy start anew with it."""
        document: dict[str, Any] = yaml.safe_load(self._config())
        document["ipvs"] = {**(document.get("ipvs") or {}), "strictARP": True}
        text = yaml.safe_dump(document)
        self.cluster.core.patch_namespaced_config_map("kube-proxy", "kube-system", {"data": {"config.conf": text}})
        template = {"metadata": {"annotations": {CONFIG_DIGEST: digest_of(text)}}}
        self.cluster.apps.patch_namespaced_daemon_set("kube-proxy", "kube-system", {"spec": {"template": template}})


def digest_of(config: str) -> str:
    """What a DaemonSet carries of the configuration that its Pods were started with. Pure."""
    return hashlib.sha256(config.encode()).hexdigest()


@dataclass(frozen=True)
class DnsSpread:
    """The cluster's DNS is on more machines than one.

    kubeadm makes its Pods while there is one node, and the scheduler moves none: with that node all names are away,
    until its Pods are evicted five minutes later. kubeadm's guide to highly available clusters has them made anew once
    other nodes have joined; their own anti-affinity then parts them.
    """

    cluster: Cluster
    reachable: Callable[[], bool]
    name: str = "cluster DNS spread"

    def _pods(self) -> list[client.V1Pod]:
        listed = self.cluster.core.list_namespaced_pod(
            "kube-system", label_selector=DNS_LABEL, _request_timeout=REQUEST_TIMEOUT_S
        )
        return placed(listed.items)

    def pending(self) -> Sequence[str]:
        """A line for each Pod that is to be made anew, on another machine."""
        if not self.reachable():
            return ["make one of CoreDNS's Pods anew once other nodes have joined"]
        return [f"make {pod.metadata.name} anew, away from {pod.spec.node_name}" for pod in crowded(self._pods())]

    def apply(self) -> None:
        """Delete those Pods, for which the Deployment makes others; one stays, so that names are answered meanwhile.

        Raises ActionFailed where the scheduler puts no Pod on another machine.
        """

        def parted() -> None:
            nodes = {pod.spec.node_name for pod in self._pods()}
            if len(nodes) < 2:
                raise NotYet(f"on {', '.join(nodes) or 'none'}; see which nodes take new Pods: kubectl get nodes")

        replace(self.cluster.core, crowded(self._pods()))
        eventually("CoreDNS on several machines", parted, timeout_s=READY_TIMEOUT_S)


def placed(pods: Sequence[client.V1Pod]) -> list[client.V1Pod]:
    """Those that have a node, and are not on their way out. Pure."""
    return [pod for pod in pods if pod.spec.node_name and not pod.metadata.deletion_timestamp]


def crowded(pods: Sequence[client.V1Pod]) -> list[client.V1Pod]:
    """All but one of `pods` where they share one node, else none. Pure."""
    return list(pods[1:]) if len({pod.spec.node_name for pod in pods}) == 1 else []


def pool_documents(environment: Environment) -> list[dict[str, Any]]:
    """MetalLB's pool and its L2 advertisement, as the document names them. Pure."""
    metallb = environment.metallb
    return [
        {
            "apiVersion": "metallb.io/v1beta1",
            "kind": "IPAddressPool",
            "metadata": {"name": metallb.pool, "namespace": METALLB_NAMESPACE},
            "spec": {"addresses": [str(metallb.range)]},
        },
        {
            "apiVersion": "metallb.io/v1beta1",
            "kind": "L2Advertisement",
            "metadata": {"name": metallb.advertisement, "namespace": METALLB_NAMESPACE},
            "spec": {"ipAddressPools": [metallb.pool]},
        },
    ]


@dataclass(frozen=True)
class PoolDeclared:
    """MetalLB has its pool and announces it."""

    cluster: Cluster
    reachable: Callable[[], bool]
    name: str = "MetalLB pool"

    def pending(self) -> Sequence[str]:
        """A line for each of the two objects that is not as declared."""
        documents = pool_documents(self.cluster.environment)
        differing = self.cluster.differing(documents) if self.reachable() else documents
        return [f"apply {kind_of(document)} {name_of(document)}" for document in differing]

    def apply(self) -> None:
        """Apply both, once MetalLB's webhook answers."""
        documents = pool_documents(self.cluster.environment)
        eventually("MetalLB's webhook", lambda: self.cluster.apply(documents), timeout_s=READY_TIMEOUT_S)


@dataclass(frozen=True)
class ClusterReady:
    """Every node is Ready and every system workload has all its Pods."""

    cluster: Cluster
    reachable: Callable[[], bool]
    name: str = "cluster ready"

    def _unready(self) -> list[str]:
        names = {machine.name for machine in self.cluster.environment.cluster_machines}
        try:
            nodes = self.cluster.core.list_node(_request_timeout=REQUEST_TIMEOUT_S).items
            found = [f"node {name} {state}" for name, state in unready_nodes(nodes, names).items()]
            for namespace in SYSTEM_NAMESPACES:
                found += unready_workloads(self.cluster.apps, namespace)
        except ApiException as error:
            return [f"the API answers {error.status} {error.reason}"]
        except UNAVAILABLE as error:
            return [f"the API does not answer: {type(error).__name__}"]
        return found

    def pending(self) -> Sequence[str]:
        """What is not ready, a line each."""
        return [f"wait for {line}" for line in self._unready()] if self.reachable() else ["wait for every node"]

    def apply(self) -> None:
        """Wait; raises ActionFailed with what is still not ready at the deadline.

        Pods that kubelet holds back after a crash are replaced first: after a power cut MetalLB's speakers start before
        kube-proxy has led them to the API, and would be held back for up to 40 s by now. Who crashes afterwards has a
        cause that is still there, and is waited for.
        """
        self._replace_crashed()

        def ready() -> bool:
            if unready := self._unready():
                raise NotYet("; ".join(unready))
            return True

        try:
            poll("the cluster is ready", ready, timeout_s=READY_TIMEOUT_S, interval_s=1)
        except DeadlineExceeded as error:
            raise ActionFailed(str(error)) from error

    def _replace_crashed(self) -> None:
        core = self.cluster.core
        for namespace in SYSTEM_NAMESPACES:
            with suppress(ApiException, *UNAVAILABLE):  # the API is away: there is a wait to come
                pods = core.list_namespaced_pod(namespace, _request_timeout=REQUEST_TIMEOUT_S).items
                replace(core, crash_looping(pods))


def replace(core: client.CoreV1Api, pods: Sequence[client.V1Pod]) -> None:
    """Delete Pods, for which their owners make others; one that is gone by itself is what was wanted."""
    for pod in pods:
        with suppress(ApiException):
            core.delete_namespaced_pod(pod.metadata.name, pod.metadata.namespace, _request_timeout=REQUEST_TIMEOUT_S)


def crash_looping(pods: Sequence[client.V1Pod]) -> list[client.V1Pod]:
    """Those of a DaemonSet or a Deployment with a container that kubelet starts again only after a pause. Pure.

    10 s after a crash, twice as long after each further one (kubernetes.io, Pod Lifecycle, CrashLoopBackOff). Another
    Pod in its place starts at once.
    """
    return [
        pod
        for pod in pods
        if any(owner.kind in ("DaemonSet", "ReplicaSet") for owner in pod.metadata.owner_references or ())
        and any(
            status.state.waiting and status.state.waiting.reason == "CrashLoopBackOff"
            for status in pod.status.container_statuses or ()
        )
    ]
