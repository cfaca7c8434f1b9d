"""The site on the cluster: the document's Service, volume and Deployment, and WordPress installed through its VIP."""

import base64
import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import requests
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from environments.model import Environment, Role
from provisioning.action import ActionFailed
from provisioning.addons import eventually
from provisioning.cluster import REQUEST_TIMEOUT_S, UNAVAILABLE, Cluster, kind_of, name_of
from provisioning.database import PORT, Database
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.wordpress import NO_DATABASE, WordPress, WordPressError

NAMESPACE = "default"
NOT_ENDED = "status.phase!=Failed,status.phase!=Succeeded"
NAME, VOLUME, CLAIM, SECRET = "wordpress", "wp-pv", "wp-pvc", "wordpress-db"
LABELS = {"app": "wordpress", "tier": "frontend"}
SELECTOR = ",".join(f"{key}={value}" for key, value in LABELS.items())
# The first replica copies WordPress to the file server; the image comes first.
READY_TIMEOUT_S, INSTALLED_TIMEOUT_S = 420, 120
# PHP and the shared files, without the database: a replica is not the worse for a database that is away.
PROBE = {"httpGet": {"path": "/wp-includes/version.php", "port": 80}, "timeoutSeconds": 5}
TROUBLES = {"FailedMount", "FailedScheduling", "Failed", "BackOff", "FailedCreatePodSandBox"}
REVISION = "deployment.kubernetes.io/revision"  # by the Deployment's controller, on its ReplicaSets as well
# A page at the public host begins WordPress's scheduled work by a request to that name, and waits for the resolver as
# long as that tries, whatever limit the request has: with what resolv.conf(5) has by itself 20 s while CoreDNS is away.
# The site needs no name of the cluster, so that one with a dot in it is asked for as it stands.
RESOLVER = {
    "options": [
        {"name": "timeout", "value": "1"},
        {"name": "attempts", "value": "2"},
        {"name": "ndots", "value": "1"},
    ]
}
# What no waiting mends: the registry has answered, and has no such image.
NO_SUCH_IMAGE = re.compile(r"Failed to pull image .*: not found")


def extra_configuration(environment: Environment) -> str:
    """PHP for wp-config.php: one site under two names, and no request to hosts elsewhere. Pure.

    Each visitor is led on under the name that was asked for, so that none at the public host hears of the VIP.
    """
    public, vip = environment.edge.public_host, environment.wordpress.vip
    return (
        f"$public = ($_SERVER['HTTP_HOST'] ?? '') === '{public}'; "
        "if ($public) { $_SERVER['HTTPS'] = 'on'; } "
        f"define('WP_HOME', $public ? 'https://{public}' : 'http://{vip}'); "
        "define('WP_SITEURL', WP_HOME); "
        "define('WP_HTTP_BLOCK_EXTERNAL', true); "
        "define('AUTOMATIC_UPDATER_DISABLED', true);"
    )


def secret(environment: Environment) -> dict[str, Any]:
    """The database's password, where a manifest can refer to it. Holds the secret itself. Pure."""
    password = environment.wordpress.database_password.reveal()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET, "namespace": NAMESPACE},
        "data": {"password": base64.b64encode(password.encode()).decode()},
    }


def documents(environment: Environment, database: str, secret_version: str) -> list[dict[str, Any]]:
    """The document's Service, PV, PVC and Deployment; `database` is the SQL node's address. Pure.

    Pods read the Secret when they start: another version of it makes other Pods.
    """
    site = environment.wordpress
    server = environment.with_role(Role.NFS)[0]
    worker = environment.with_role(Role.WORKER)[0]
    variables = {
        "WORDPRESS_DB_HOST": f"{database}:{PORT}",
        "WORDPRESS_DB_NAME": site.database,
        "WORDPRESS_DB_USER": site.database_user,
        "WORDPRESS_CONFIG_EXTRA": extra_configuration(environment),
    }
    container = {
        "name": NAME,
        "image": site.image,
        "imagePullPolicy": "IfNotPresent",
        "env": [
            *({"name": name, "value": value} for name, value in variables.items()),
            {"name": "WORDPRESS_DB_PASSWORD", "valueFrom": {"secretKeyRef": {"name": SECRET, "key": "password"}}},
        ],
        "ports": [{"containerPort": 80, "protocol": "TCP", "name": "wordpress"}],
        "startupProbe": {**PROBE, "periodSeconds": 2, "failureThreshold": 150},
        "readinessProbe": {**PROBE, "periodSeconds": 3, "failureThreshold": 3},
        # Endpoints and the rules of all nodes forget a replica first, and only then does it stop to answer.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
        "volumeMounts": [{"name": "wordpress-persistent-storage", "mountPath": "/var/www/html"}],
    }
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": LABELS},
        "matchLabelKeys": ["pod-template-hash"],
        "nodeTaintsPolicy": "Honor",
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"app": "wordpress"}},
            "spec": {
                "type": "LoadBalancer",
                "loadBalancerIP": str(site.vip),
                **({"loadBalancerSourceRanges": list(map(str, site.vip_clients))} if site.vip_clients else {}),
                "selector": LABELS,
                "ports": [{"name": "http", "port": 80, "targetPort": 80, "protocol": "TCP"}],
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": VOLUME},
            "spec": {
                "storageClassName": "manual",
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteMany"],
                "persistentVolumeReclaimPolicy": "Retain",
                "mountOptions": ["hard", "nfsvers=3"],
                "nfs": {
                    "server": str(environment.reached_from(worker, server)),
                    "path": environment.nfs.export,
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": CLAIM, "namespace": NAMESPACE},
            "spec": {
                "storageClassName": "manual",
                "volumeName": VOLUME,
                "accessModes": ["ReadWriteMany"],
                "resources": {"requests": {"storage": "1Gi"}},
            },
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"app": "wordpress"}},
            "spec": {
                "replicas": site.replicas,
                "selector": {"matchLabels": LABELS},
                "template": {
                    "metadata": {"labels": LABELS, "annotations": {"haproof/secret": secret_version}},
                    "spec": {
                        "enableServiceLinks": False,
                        "automountServiceAccountToken": False,
                        "topologySpreadConstraints": [spread],
                        "dnsConfig": RESOLVER,
                        "containers": [container],
                        "volumes": [
                            {"name": "wordpress-persistent-storage", "persistentVolumeClaim": {"claimName": CLAIM}}
                        ],
                    },
                },
            },
        },
    ]


@dataclass(frozen=True)
class SiteDeclared:
    """The Secret, the Service, the volume and the Deployment are on the cluster as declared."""

    cluster: Cluster
    database: Database
    reachable: Callable[[], bool]
    name: str = "site declared"

    def _version(self) -> str:
        """The Secret's version on the cluster; empty when there is none."""
        try:
            found = self.cluster.core.read_namespaced_secret(SECRET, NAMESPACE, _request_timeout=REQUEST_TIMEOUT_S)
        except ApiException as error:
            if error.status != requests.codes.not_found:
                raise
            return ""
        return hashlib.sha256(f"{found.metadata.uid} {found.metadata.resource_version}".encode()).hexdigest()[:16]

    def _documents(self) -> list[dict[str, Any]]:
        return documents(self.cluster.environment, str(self.database.address), self._version())

    def pending(self) -> Sequence[str]:
        """A line for each object that is not as declared."""
        if not self.reachable():
            return ["apply the site's Secret, Service, volume, claim and Deployment"]
        wanted = [secret(self.cluster.environment), *self._documents()]
        return [f"apply {kind_of(d)} {name_of(d)}" for d in self.cluster.differing(wanted)]

    def apply(self) -> None:
        """Apply them, the Secret first; raises ActionFailed."""
        first = secret(self.cluster.environment)
        if self.cluster.differing([first]):
            eventually("the site's Secret accepted", lambda: self.cluster.apply([first]))
        eventually("the site's objects accepted", lambda: self.cluster.apply(self._documents()))


def site_pods(cluster: Cluster) -> list[client.V1Pod]:
    """The site's Pods, whatever state they are in; raises ApiException.

    Those that have come to their end, as by eviction, are none any more: the API keeps them to be read of.
    """
    found = cluster.core.list_namespaced_pod(
        NAMESPACE, label_selector=SELECTOR, field_selector=NOT_ENDED, _request_timeout=REQUEST_TIMEOUT_S
    )
    return list(found.items)


def pods_of(cluster: Cluster, deployment: client.V1Deployment) -> list[client.V1Pod]:
    """The Pods of a Deployment's present template: those of one that was corrected tell of what is over.

    None as long as its controller has not seen it.
    """
    revision = (deployment.metadata.annotations or {}).get(REVISION)
    if revision is None:
        return []
    sets = cluster.apps.list_namespaced_replica_set(
        NAMESPACE, label_selector=SELECTOR, _request_timeout=REQUEST_TIMEOUT_S
    )
    present = {found.metadata.uid for found in sets.items if found.metadata.annotations.get(REVISION) == revision}
    return [
        pod for pod in site_pods(cluster) if any(owner.uid in present for owner in pod.metadata.owner_references or [])
    ]


def unready_replicas(cluster: Cluster) -> list[str]:
    """What keeps replicas from being Ready, a line each: by the Deployment, and by the events of its Pods.

    A Pod that may not be made at all, as beyond a quota, has no events; the Deployment tells why. Raises ApiException.
    """
    deployment = cluster.apps.read_namespaced_deployment(NAME, NAMESPACE, _request_timeout=REQUEST_TIMEOUT_S)
    wanted, status = deployment.spec.replicas, deployment.status
    current = (status.observed_generation or 0) >= deployment.metadata.generation
    done = (status.ready_replicas or 0, status.updated_replicas or 0, status.replicas or 0)
    if current and done == (wanted, wanted, wanted):
        return []
    lines = [f"{done[0]} of {wanted} replicas are Ready"]
    if not current:
        return lines
    refused = [one for one in status.conditions or [] if one.type == "ReplicaFailure" and one.status == "True"]
    lines += [f"{one.reason}: {one.message}" for one in refused]
    names = {pod.metadata.name: pod.spec.node_name for pod in pods_of(cluster, deployment)}
    for event in cluster.core.list_namespaced_event(NAMESPACE, _request_timeout=REQUEST_TIMEOUT_S).items:
        name = event.involved_object.name
        if name in names and event.reason in TROUBLES:
            lines.append(f"Pod {name} on {names[name] or 'no node'}: {event.reason}: {event.message}")
    return lines


def crowded(nodes: Mapping[str, str | None], workers: Collection[str]) -> dict[str, str]:
    """Pods, with their nodes, that have to move so that no worker is without one while another has two. Pure.

    Kubernetes spreads Pods when it places them, and leaves them where they are when a worker comes back.
    """
    held: dict[str, list[str]] = {worker: [] for worker in sorted(workers)}
    for pod, node in sorted(nodes.items()):
        if node in held:
            held[node].append(pod)
    empty = sum(not pods for pods in held.values())
    spare = {pod: worker for worker, pods in held.items() for pod in pods[1:]}
    return dict(list(spare.items())[:empty])


@dataclass(frozen=True)
class SiteRunning:
    """Every replica is Ready, and they are spread over the workers."""

    cluster: Cluster
    reachable: Callable[[], bool]
    timeout_s: float = READY_TIMEOUT_S
    name: str = "site running"

    def pending(self) -> Sequence[str]:
        """What keeps replicas from being Ready, and those that share a worker while another has none."""
        if not self.reachable():
            return ["wait for every replica"]
        try:
            if unready := unready_replicas(self.cluster):
                return [f"wait: {line}" for line in unready]
            return [f"move Pod {pod} off {node}, which has another" for pod, node in self._crowded().items()]
        except ApiException as error:
            if error.status != requests.codes.not_found:
                raise
            return ["wait for every replica"]

    def _crowded(self) -> dict[str, str]:
        deployment = self.cluster.apps.read_namespaced_deployment(NAME, NAMESPACE, _request_timeout=REQUEST_TIMEOUT_S)
        pods = [pod for pod in pods_of(self.cluster, deployment) if pod.metadata.deletion_timestamp is None]
        nodes = {pod.metadata.name: pod.spec.node_name for pod in pods}
        workers = self.cluster.environment.with_role(Role.WORKER)
        return crowded(nodes, {worker.name for worker in workers})

    def _pods(self) -> set[str]:
        return {pod.metadata.name for pod in site_pods(self.cluster)}

    def apply(self) -> None:
        """Wait, then spread and wait again; raises ActionFailed with what the Pods' events say at the deadline."""
        self._await_ready()
        for pod in self._crowded():
            self.cluster.core.delete_namespaced_pod(pod, NAMESPACE, _request_timeout=REQUEST_TIMEOUT_S)
            self._await_ready(without=pod)

    def _await_ready(self, without: str = "") -> None:
        told: list[str] = []

        def ready() -> bool:
            try:
                told[:] = unready_replicas(self.cluster)
                if without in self._pods():
                    raise NotYet(f"Pod {without} is still there")
            except UNAVAILABLE as error:
                raise NotYet(f"the API does not answer: {error}") from error
            if final := next((line for line in told if NO_SUCH_IMAGE.search(line)), ""):
                raise ActionFailed(f"the registry has no such image; correct wordpress.image: {final}")
            if told:
                raise NotYet(told[0])
            return True

        try:
            poll("every replica of the site", ready, timeout_s=self.timeout_s, interval_s=1)
        except DeadlineExceeded as error:
            raise ActionFailed(
                f"{error}; the Pods' events say why", command="kubectl get events", output="\n".join(told)
            ) from error


@dataclass(frozen=True)
class SiteInstalled:
    """WordPress has its tables, its title and its administrator, by its own installer at the VIP."""

    cluster: Cluster
    database: Database
    reachable: Callable[[], bool]
    timeout_s: float = INSTALLED_TIMEOUT_S
    name: str = "site installed"

    @property
    def _site(self) -> WordPress:
        """Asked for by the public name: what the installer writes down is read by the public."""
        environment = self.cluster.environment
        return WordPress(f"http://{environment.wordpress.vip}", environment.edge.public_host)

    def pending(self) -> Sequence[str]:
        """One line unless it is installed."""
        line = f"install WordPress at {self.cluster.environment.wordpress.vip}"
        if not self.reachable():
            return [line]
        try:
            return [] if self._site.installed() else [line]
        except (requests.RequestException, WordPressError):
            return [line]

    def apply(self) -> None:
        """Wait for the VIP, and fill in the installer's form; raises ActionFailed with the cause."""
        settings = self.cluster.environment.wordpress

        def installed() -> bool:
            try:
                if not self._site.installed():
                    self._site.install(
                        settings.title, settings.admin_user, settings.admin_password.reveal(), settings.admin_email
                    )
            except requests.ConnectionError as error:
                raise NotYet(f"{settings.vip} does not answer: {type(error).__name__}") from error
            except WordPressError as error:
                if NO_DATABASE in str(error):
                    raise NotYet(self._without_database()) from error
                raise NotYet(str(error)) from error
            except requests.RequestException as error:
                raise NotYet(f"{type(error).__name__}") from error
            return True

        try:
            poll("WordPress installed", installed, timeout_s=self.timeout_s, interval_s=2)
        except DeadlineExceeded as error:
            raise ActionFailed(str(error), machine=self.database.machine.name) from error

    def _without_database(self) -> str:
        """Why WordPress finds no database, as far as can be told from the SQL node."""
        where = f"{self.database.address}:{PORT} on {self.database.machine.name}"
        try:
            admitted = self.database.admits(self.cluster.environment.wordpress.database_password.reveal())
        except ActionFailed as error:
            return f"WordPress finds no database at {where}: {error.cause}"
        if not admitted:
            return (
                f"WordPress finds no database at {where}: the password there is another one than in the Secret {SECRET}"
            )
        return f"WordPress finds no database at {where}, which lets its user in from there: look at the way to it"
