"""Services of type LoadBalancer: the addresses they get, and what happens when none is left."""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from kubernetes import client
from pytest_bdd import given, then, when

from environments.model import AddressRange, Environment, Role
from provisioning.cluster import REQUEST_TIMEOUT_S, Cluster
from provisioning.poll import DeadlineExceeded, NotYet, poll
from steps.complaints import none_of, unless
from steps.namespaces import Namespaces
from steps.pods import PORT, Pod, await_pods, printed, until, web_server

ADDRESS_TIMEOUT_S = 15  # the controller answers within a second, once it has started


@dataclass(frozen=True)
class Published:
    """A Service with its virtual address and the Pods behind it."""

    name: str
    address: IPv4Address
    pods: tuple[Pod, ...]


def load_balancer(name: str) -> dict[str, Any]:
    """A Service like the document's, in front of Pods labelled `app` with its name. Pure."""
    return {
        "metadata": {"name": name},
        "spec": {
            "type": "LoadBalancer",
            "selector": {"app": name},
            "ports": [{"port": 80, "targetPort": PORT}],
        },
    }


def address_of(service: Any) -> IPv4Address | None:
    """The virtual address that a Service has got, if any. Pure."""
    balancer = service.status.load_balancer
    ingress = (balancer.ingress if balancer else None) or []
    return IPv4Address(ingress[0].ip) if ingress and ingress[0].ip else None


def addresses_in(core: client.CoreV1Api, namespace: str) -> dict[str, IPv4Address | None]:
    """The virtual addresses of a namespace's Services, by name."""
    services = core.list_namespaced_service(namespace, _request_timeout=REQUEST_TIMEOUT_S).items
    return {service.metadata.name: address_of(service) for service in services}


def addresses_given(core: client.CoreV1Api, namespace: str) -> dict[str, IPv4Address | None]:
    """As `addresses_in`, once every Service has one; at the deadline, as they are."""

    def every_one() -> bool:
        found = addresses_in(core, namespace)
        if missing := sorted(name for name, address in found.items() if address is None):
            raise NotYet(f"no address for {', '.join(missing)}")
        return True

    try:
        poll("addresses for Services", every_one, timeout_s=ADDRESS_TIMEOUT_S, interval_s=0.2)
    except DeadlineExceeded:
        return addresses_in(core, namespace)
    return addresses_in(core, namespace)


def outside(pool: AddressRange, given_: Mapping[str, IPv4Address | None]) -> dict[str, list[str]]:
    """Complaints of Services whose address is none of the pool's, or another's too. Pure."""
    every = list(given_.values())
    return {
        name: [
            *unless(address is not None and address in pool, f"expected an address of {pool}, found {address}"),
            *unless(address is None or every.count(address) == 1, f"expected its own address, shares {address}"),
        ]
        for name, address in given_.items()
    }


def make(core: client.CoreV1Api, namespace: str, *names: str) -> None:
    """Make a Service of each name; raises ApiException."""
    for name in names:
        core.create_namespaced_service(namespace, load_balancer(name), _request_timeout=REQUEST_TIMEOUT_S)


@given("a Service with web servers on all workers", target_fixture="published")
def published_service(namespace: str, environment: Environment, cluster: Cluster) -> Published:
    """As many replicas as there are workers, spread over them, behind one virtual address.

    Raises DeadlineExceeded when they do not come to be.
    """
    count = len(environment.with_role(Role.WORKER))
    template = web_server({"app": "web"})
    template["spec"]["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}},
            "nodeTaintsPolicy": "Honor",
        }
    ]
    deployment = {
        "metadata": {"name": "web"},
        "spec": {"replicas": count, "selector": {"matchLabels": {"app": "web"}}, "template": template},
    }
    cluster.apps.create_namespaced_deployment(namespace, deployment, _request_timeout=REQUEST_TIMEOUT_S)
    make(cluster.core, namespace, "web")
    pods = await_pods(cluster.core, namespace, count)
    address = addresses_given(cluster.core, namespace)["web"]
    assert address is not None, f"expected an address for the Service within {ADDRESS_TIMEOUT_S} s, found none"
    return Published("web", address, pods)


@given("Services that hold all addresses of the pool", target_fixture="holders")
def full_pool(
    namespace: str, namespaces: Namespaces, environment: Environment, cluster: Cluster
) -> dict[str, IPv4Address | None]:
    """The Services that took what was left of the pool, with their addresses; raises DeadlineExceeded."""
    # A Service on its way out holds its address until it is gone, and would give it back in the middle of this.
    namespaces.await_gone()
    pool = environment.metallb.range
    services = cluster.core.list_service_for_all_namespaces(_request_timeout=REQUEST_TIMEOUT_S).items
    taken = {address for service in services if (address := address_of(service)) and address in pool}
    make(cluster.core, namespace, *(f"holder-{index:03d}" for index in range(len(pool) - len(taken))))
    holders = addresses_given(cluster.core, namespace)
    if short := [name for name, address in holders.items() if address is None]:
        raise DeadlineExceeded("a full pool", ADDRESS_TIMEOUT_S, f"no address for {', '.join(short)}")
    return holders


@when("a Service of type LoadBalancer is made")
def make_one(namespace: str, cluster: Cluster) -> None:
    """In the scenario's namespace."""
    make(cluster.core, namespace, "one")


@when("two Services of type LoadBalancer are made")
def make_two(namespace: str, cluster: Cluster) -> None:
    """In the scenario's namespace."""
    make(cluster.core, namespace, "one", "two")


@then("it gets an address of the pool")
@then("each of them gets an address of the pool of its own")
def all_get_addresses(namespace: str, environment: Environment, cluster: Cluster) -> None:
    """Awaited for a while."""
    none_of(outside(environment.metallb.range, addresses_given(cluster.core, namespace)))


@then("its events say that no address is left")
def allocation_failed(namespace: str, cluster: Cluster) -> None:
    """MetalLB's own reason, on the Service that came too late, which has no address."""

    def told() -> bool:
        events = cluster.core.list_namespaced_event(
            namespace,
            field_selector="involvedObject.kind=Service,involvedObject.name=one",
            _request_timeout=REQUEST_TIMEOUT_S,
        ).items
        address = addresses_in(cluster.core, namespace)["one"]
        assert address is None, f"expected no address for the Service that came too late, found {address}"
        if not any(event.reason == "AllocationFailed" for event in events):
            raise NotYet(", ".join(str(event.reason) for event in events) or "no event")
        return True

    try:
        poll("event AllocationFailed", told, timeout_s=ADDRESS_TIMEOUT_S, interval_s=0.2)
    except DeadlineExceeded as error:
        raise AssertionError(f"expected an event AllocationFailed, found {error.last_state}") from error


@then("the other Services keep their addresses")
def addresses_are_kept(holders: dict[str, IPv4Address | None], namespace: str, cluster: Cluster) -> None:
    """Each its own, and no two the same."""
    now = addresses_in(cluster.core, namespace)
    none_of(
        {
            name: unless(now.get(name) == address, f"expected to keep {address}, found {now.get(name)}")
            for name, address in holders.items()
        }
    )


@when("every Pod calls the Service at its address inside the cluster", target_fixture="answered")
def pods_call_service(namespace: str, published: Published, cluster: Cluster) -> dict[str, str]:
    """Who answered each of them."""
    service = cluster.core.read_namespaced_service(published.name, namespace, _request_timeout=REQUEST_TIMEOUT_S)
    script = f"timeout 3 wget -q -O - http://{service.spec.cluster_ip}/ 2>&1"

    def look() -> dict[str, str]:
        told = printed(cluster.core, namespace, published.pods, ["sh", "-c", script])
        return {name: text.strip() for name, text in told.items()}

    names = {pod.name for pod in published.pods}
    return until("every Pod reaches the Service", look, lambda answered: set(answered.values()) <= names)


@then("every call is answered by one of the Pods behind it")
def service_answers(answered: dict[str, str], published: Published) -> None:
    """By its name, which is its page; each node has rules of its own for a Service's address."""
    pods = {pod.name: pod for pod in published.pods}
    none_of(
        {
            f"{caller} on {pods[caller].node}": unless(
                answer in pods, f"expected one of the Pods behind the Service to answer, heard {answer!r}"
            )
            for caller, answer in answered.items()
        }
    )
