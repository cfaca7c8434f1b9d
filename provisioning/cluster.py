"""The Kubernetes API as provisioning and steps use it: a client made from what the first master says."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import DynamicApiError, ResourceNotFoundError

from environments.model import Environment
from provisioning.action import ActionFailed
from provisioning.poll import NotYet
from provisioning.ssh import Shell

FIELD_MANAGER = "haproof"
REQUEST_TIMEOUT_S = 30
# What a client sees while an API server or a webhook is not up yet; anything else is an answer.
UNAVAILABLE = (urllib3.exceptions.HTTPError, ConnectionError)


@dataclass(frozen=True)
class Cluster:
    """The cluster of one environment, reached at the address of its control plane endpoint."""

    environment: Environment
    shell: Shell

    @cached_property
    def kubeconfig(self) -> dict[str, Any]:
        """The administrator's configuration, read from the first master; also kept for people to use.

        The endpoint's name means something only on the machines, so the address takes its place here.
        Raises ActionFailed.
        """
        machine = self.environment.machine(self.environment.kubernetes.control_plane_endpoint)
        document: dict[str, Any] = yaml.safe_load(self.shell.check(machine, "cat /etc/kubernetes/admin.conf"))
        for cluster in document["clusters"]:
            cluster["cluster"]["server"] = f"https://{self.environment.address(machine)}:6443"
        path = self.shell.state.kubeconfig
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(document))
        return document

    @cached_property
    def api(self) -> client.ApiClient:
        """A client of the API; raises ActionFailed when the first master cannot be read."""
        return config.new_client_from_config_dict(self.kubeconfig)

    @property
    def core(self) -> client.CoreV1Api:
        """Pods, Services, nodes, events."""
        return client.CoreV1Api(self.api)

    @property
    def apps(self) -> client.AppsV1Api:
        """Deployments and DaemonSets."""
        return client.AppsV1Api(self.api)

    @property
    def discovery(self) -> client.DiscoveryV1Api:
        """What Services route to."""
        return client.DiscoveryV1Api(self.api)

    @property
    def dynamic(self) -> DynamicClient:
        """Everything by kind, custom resources included; discovers the API's resources anew."""
        return DynamicClient(self.api)

    def differing(self, documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of `documents` that the cluster does not hold as they are; server-side apply decides, dry."""
        found = []
        dynamic = self.dynamic
        for document in documents:
            try:
                resource = resource_of(dynamic, document)
                current = resource.get(name=name_of(document), namespace=namespace_of(document)).to_dict()
                wanted = apply_one(dynamic, document, dry_run=True)
            except (ResourceNotFoundError, DynamicApiError):
                found.append(document)
                continue
            if comparable(current) != comparable(wanted):
                found.append(document)
        return found

    def apply(self, documents: list[dict[str, Any]]) -> None:
        """Server-side apply; raises NotYet while a kind is not served or a webhook does not answer yet."""
        for document in documents:
            try:
                apply_one(self.dynamic, document)
            except ResourceNotFoundError as error:
                raise NotYet(f"{kind_of(document)} is not served yet") from error
            except DynamicApiError as error:
                if error.status in (500, 503, 404):
                    raise NotYet(f"{kind_of(document)} {name_of(document)}: {error.summary()}") from error
                raise ActionFailed(
                    f"the API refuses {kind_of(document)} {name_of(document)}: {error.summary()}"
                ) from error


def kind_of(document: dict[str, Any]) -> str:
    """The kind of a manifest's document."""
    return str(document["kind"])


def name_of(document: dict[str, Any]) -> str:
    """The name of a manifest's document."""
    return str(document["metadata"]["name"])


def namespace_of(document: dict[str, Any]) -> str | None:
    """The namespace of a manifest's document, if it says one."""
    namespace = document["metadata"].get("namespace")
    return None if namespace is None else str(namespace)


def resource_of(dynamic: DynamicClient, document: dict[str, Any]) -> Any:
    """The API resource that serves a document; raises ResourceNotFoundError."""
    return dynamic.resources.get(api_version=document["apiVersion"], kind=kind_of(document))


def apply_one(dynamic: DynamicClient, document: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
    """Server-side apply of one document; returns what the server makes of it."""
    extra = {"query_params": [("dryRun", "All")]} if dry_run else {}
    applied = dynamic.server_side_apply(
        resource_of(dynamic, document),
        body=document,
        name=name_of(document),
        namespace=namespace_of(document),
        field_manager=FIELD_MANAGER,
        force_conflicts=True,
        **extra,
    )
    return dict(applied.to_dict())


def comparable(document: dict[str, Any]) -> dict[str, Any]:
    """A live object without what changes by itself."""
    metadata = {
        key: value
        for key, value in document.get("metadata", {}).items()
        if key not in ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")
    }
    return {**{key: value for key, value in document.items() if key != "status"}, "metadata": metadata}


def unready_nodes(nodes: list[Any], names: set[str]) -> dict[str, str]:
    """Those of `names` that are not Ready among the API's `nodes`, with what they say instead. Pure."""
    told = {node.metadata.name: ready_condition(node) for node in nodes}
    return {name: told.get(name, "absent") for name in sorted(names) if told.get(name) != "True"}


def nodes_under_pressure(nodes: list[Any], names: set[str]) -> dict[str, str]:
    """Those of `names` that take no Pods for want of room, memory or process ids, with what each is short of. Pure."""
    found = {}
    for node in nodes:
        short = [c.type for c in node.status.conditions or [] if c.type.endswith("Pressure") and c.status == "True"]
        if short and node.metadata.name in names:
            found[node.metadata.name] = " and ".join(short)
    return found


def ready_condition(node: Any) -> str:
    """`True`, `False` or `Unknown`: the Ready condition of one node."""
    return next((str(c.status) for c in node.status.conditions or [] if c.type == "Ready"), "Unknown")


def unready_workloads(apps: client.AppsV1Api, namespace: str) -> Iterator[str]:
    """Deployments and DaemonSets of `namespace` that are short of Pods, as `kind/name 1 of 5`."""
    for deployment in apps.list_namespaced_deployment(namespace, _request_timeout=REQUEST_TIMEOUT_S).items:
        ready, wanted = deployment.status.ready_replicas or 0, deployment.spec.replicas
        if ready < wanted or (deployment.status.observed_generation or 0) < deployment.metadata.generation:
            yield f"deployment/{deployment.metadata.name} {ready} of {wanted}"
    for daemons in apps.list_namespaced_daemon_set(namespace, _request_timeout=REQUEST_TIMEOUT_S).items:
        ready, wanted = daemons.status.number_ready or 0, daemons.status.desired_number_scheduled
        current = (daemons.status.observed_generation or 0) >= daemons.metadata.generation
        if not wanted or ready < wanted or not current:
            yield f"daemonset/{daemons.metadata.name} {ready} of {wanted}"
