"""A virtual address from outside the cluster: who answers ARP for it, and who answers its visitors."""

import http.client
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv4Address

import yaml
from pytest_bdd import then, when

from environments.model import Environment
from provisioning.cluster import REQUEST_TIMEOUT_S, Cluster
from provisioning.hypervisor import Hypervisor
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.session import Session
from steps.arp import who_has
from steps.machines import cards
from steps.services import Published

CALLS_A_ROUND = 30  # with three replicas and a fair choice, one is left out of so many once in 60,000 rounds
CALLS_AT_ONCE = 8  # the web server of `steps.pods` lets 9 wait (busybox, httpd.c), and all may be for one replica
SPREAD_TIMEOUT_S = 10
CALL_TIMEOUT_S = 3
FIRST_ANSWER_TIMEOUT_S = 30  # the announcer is chosen and the nodes' rules are written within seconds


def visit(address: IPv4Address) -> str:
    """The page at `address` over a new connection; raises OSError or HTTPException."""
    connection = http.client.HTTPConnection(str(address), 80, timeout=CALL_TIMEOUT_S)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        page = response.read().decode(errors="replace").strip()
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise http.client.HTTPException(f"status {response.status}")
    return page


def await_answer(address: IPv4Address, timeout_s: float) -> str:
    """The first page that `address` answers with; raises DeadlineExceeded with the last refusal."""

    def answered() -> str:
        try:
            return visit(address)
        except (OSError, http.client.HTTPException) as error:
            raise NotYet(f"{type(error).__name__}: {error}") from error

    return poll(f"an answer of {address}", answered, timeout_s=timeout_s, interval_s=0.5)


@then("kube-proxy is told strictARP")
def strict_arp(cluster: Cluster) -> None:
    """By its ConfigMap; it matters in IPVS mode only, and the document sets it in any."""
    config_map = cluster.core.read_namespaced_config_map(
        "kube-proxy", "kube-system", _request_timeout=REQUEST_TIMEOUT_S
    )
    ipvs = yaml.safe_load(config_map.data["config.conf"]).get("ipvs") or {}
    assert ipvs.get("strictARP") is True, f"expected ipvs.strictARP true, found {ipvs.get('strictARP')}"


@when("the segment is asked by ARP who has its virtual address", target_fixture="answerers")
def ask_segment(published: Published, target: Session) -> set[str]:
    """The MAC addresses that answer, once the address is announced; nobody's, where it is not in good time."""
    with suppress(DeadlineExceeded):  # who answers is judged by the step that follows
        await_answer(published.address, FIRST_ANSWER_TIMEOUT_S)
    return who_has(published.address, target.shell, target.environment.cluster_machines)


@then("exactly one machine of the environment answers")
def one_answers(answerers: set[str], environment: Environment, hypervisor: Hypervisor) -> None:
    """The hypervisor knows whose card it is."""
    owners = {
        card.mac: machine.name
        for machine in environment.cluster_machines
        for card in cards(hypervisor.config(machine.vmid)).values()
    }
    named = sorted(owners.get(mac, f"a stranger ({mac})") for mac in answerers)
    told = ", ".join(named) or "nobody"
    assert len(answerers) == 1, f"expected one machine to answer, found {told}"
    assert answerers <= set(owners), f"expected a machine of the environment to answer, found {told}"


@when("visitors call its virtual address", target_fixture="visits")
def visitors_call(published: Published) -> Counter[str]:
    """How often each page or failure was seen, until every replica has answered or the time for that is over.

    Counting begins with the first answer: until then the address is being announced. Nodes learn of replicas
    one after another, so the calls go on for some seconds, in rounds.
    """
    with suppress(DeadlineExceeded):  # the calls that follow say what there is instead
        await_answer(published.address, FIRST_ANSWER_TIMEOUT_S)
    replicas = {pod.name for pod in published.pods}
    seen: Counter[str] = Counter()

    def call(_: int) -> str:
        try:
            return visit(published.address)
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}"

    def round_of_calls() -> bool:
        with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
            seen.update(pool.map(call, range(CALLS_A_ROUND)))
        return replicas <= set(seen)

    # What was seen is judged by the step that follows, whether or not this came to its end.
    with suppress(DeadlineExceeded):
        poll("an answer of every replica", round_of_calls, timeout_s=SPREAD_TIMEOUT_S, interval_s=1)
    return seen


@then("every replica answers some of them and no call fails")
def all_replicas_answer(published: Published, visits: Counter[str]) -> None:
    """Expected and actual, by name and count."""
    replicas = {pod.name for pod in published.pods}
    told = ", ".join(f"{name} x {count}" for name, count in visits.most_common())
    assert set(visits) == replicas, f"expected answers of {', '.join(sorted(replicas))}, found {told}"
