"""Pods that scenarios make: small web servers that answer with their own name, and what they hear of each other."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from kubernetes import client
from kubernetes.stream import stream
from pytest_bdd import given, then, when

from environments.model import Environment, Role
from provisioning.cluster import REQUEST_TIMEOUT_S, Cluster
from provisioning.poll import DeadlineExceeded, NotYet, poll
from steps.complaints import none_of, unless

IMAGE = "registry.k8s.io/e2e-test-images/busybox:1.36.1-1"
PORT = 8080
READY_TIMEOUT_S = 120
REACH_TIMEOUT_S = 10  # routes and rules of new Pods are programmed within seconds
EXEC_TIMEOUT_S = 60
API_NAME = "kubernetes.default.svc.cluster.local."
# A container's first process hears SIGTERM only where it asks for it; else a machine that reboots waits 90 s for it.
SERVE = (
    "mkdir -p /tmp/www && hostname > /tmp/www/index.html && trap exit TERM && "
    f"{{ httpd -f -p {PORT} -h /tmp/www & wait $!; }}"
)


@dataclass(frozen=True)
class Pod:
    """A running Pod: where it is and how it is reached."""

    name: str
    address: str
    node: str


@dataclass(frozen=True)
class Output:
    """What a command in a Pod printed, and how it ended."""

    stdout: str
    stderr: str
    exit_code: int


def web_server(labels: Mapping[str, str]) -> dict[str, Any]:
    """A Pod's labels and spec: a web server whose page is its own name. Pure."""
    return {
        "metadata": {"labels": dict(labels)},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "containers": [
                {
                    "name": "web",
                    "image": IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", SERVE],
                    "ports": [{"containerPort": PORT}],
                    "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
                }
            ],
        },
    }


def condition(pod: Any) -> str:
    """What keeps a Pod from being Ready, or `Ready`. Pure."""
    if any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or []):
        return "Ready"
    for status in pod.status.container_statuses or []:
        if status.state and status.state.waiting:
            return str(status.state.waiting.reason)
    return str(pod.status.phase)


def await_pods(core: client.CoreV1Api, namespace: str, count: int) -> tuple[Pod, ...]:
    """The Pods of `namespace` once `count` of them are Ready; raises DeadlineExceeded with what they are instead."""

    def ready() -> tuple[Pod, ...]:
        pods = core.list_namespaced_pod(namespace, _request_timeout=REQUEST_TIMEOUT_S).items
        states = {pod.metadata.name: condition(pod) for pod in pods}
        if list(states.values()) != ["Ready"] * count:
            raise NotYet(", ".join(f"{name} {state}" for name, state in states.items()) or "no Pod yet")
        return tuple(Pod(pod.metadata.name, pod.status.pod_ip, pod.spec.node_name) for pod in pods)

    return poll(f"{count} Ready Pods in {namespace}", ready, timeout_s=READY_TIMEOUT_S, interval_s=0.3)


def execute(core: client.CoreV1Api, namespace: str, pod: str, argv: list[str]) -> Output:
    """Run `argv` in a Pod's first container; raises ApiException, or DeadlineExceeded when it does not end."""
    # While it connects, `stream` has its client ask all it is asked by websocket: whoever shares that one goes astray.
    own = client.CoreV1Api(client.ApiClient(core.api_client.configuration))
    connection = stream(
        own.connect_get_namespaced_pod_exec,
        pod,
        namespace,
        command=argv,
        stdin=False,
        stdout=True,
        stderr=True,
        tty=False,
        _preload_content=False,
        _request_timeout=REQUEST_TIMEOUT_S,
    )
    connection.run_forever(timeout=EXEC_TIMEOUT_S)
    if connection.is_open():
        connection.close()
        raise DeadlineExceeded(f"{argv[0]} in Pod {pod}", EXEC_TIMEOUT_S, "still running")
    return Output(connection.read_stdout(), connection.read_stderr(), connection.returncode)


def printed(core: client.CoreV1Api, namespace: str, pods: Sequence[Pod], argv: list[str]) -> dict[str, str]:
    """What `argv` prints in each Pod, run in all of them at once, by their names; raises what `execute` does."""
    with ThreadPoolExecutor(max(1, len(pods))) as pool:
        outputs = pool.map(lambda pod: execute(core, namespace, pod.name, argv), pods)
        return {pod.name: output.stdout for pod, output in zip(pods, outputs, strict=True)}


@given("a web server Pod on every worker", target_fixture="pods")
def pod_on_every_worker(namespace: str, environment: Environment, cluster: Cluster) -> tuple[Pod, ...]:
    """One on each, put there by the scheduler."""
    workers = environment.with_role(Role.WORKER)
    for worker in workers:
        body = web_server({"app": "web"})
        body["metadata"]["name"] = f"web-{worker.name}"
        body["spec"]["nodeSelector"] = {"kubernetes.io/hostname": worker.name}
        cluster.core.create_namespaced_pod(namespace, body, _request_timeout=REQUEST_TIMEOUT_S)
    return await_pods(cluster.core, namespace, len(workers))


def calls_script(addresses: Iterable[str]) -> str:
    """Calls all addresses at once and prints each with what answered. Pure.

    The limit is timeout's: wget's own (-T) ends Debian 12's busybox with a segmentation fault.
    """
    listed = " ".join(addresses)
    return f'for a in {listed}; do echo "$a $(timeout 3 wget -q -O - http://$a:{PORT}/ 2>&1)" & done; wait'


def parse_calls(text: str, pods: Iterable[Pod]) -> dict[str, str]:
    """What `calls_script` printed, by the name of the Pod called. Pure."""
    heard = dict(line.partition(" ")[::2] for line in text.splitlines())
    return {pod.name: heard.get(pod.address, "").strip() for pod in pods}


def until(
    what: str, look: Callable[[], Mapping[str, Any]], well: Callable[[Mapping[str, Any]], bool]
) -> dict[str, Any]:
    """What `look` sees once it is `well`, or what it saw last: a judgement is for the steps that follow."""
    seen: dict[str, Any] = {}

    def attempt() -> bool:
        seen.update(look())
        return well(seen)

    try:
        poll(what, attempt, timeout_s=REACH_TIMEOUT_S, interval_s=0.5)
    except DeadlineExceeded:
        return seen
    return seen


@when("every Pod calls every Pod", target_fixture="heard")
def pods_call_pods(namespace: str, pods: tuple[Pod, ...], cluster: Cluster) -> dict[str, dict[str, str]]:
    """Who answered, by caller and by the one called: each Pod calls itself too."""
    script = calls_script(pod.address for pod in pods)

    def look() -> dict[str, dict[str, str]]:
        told = printed(cluster.core, namespace, pods, ["sh", "-c", script])
        return {caller: parse_calls(text, pods) for caller, text in told.items()}

    def well(heard: Mapping[str, Any]) -> bool:
        return all(name == answer for row in heard.values() for name, answer in row.items())

    return until("every Pod reaches every Pod", look, well)


@then("every call is answered by the Pod that was called")
def every_call_is_answered(heard: dict[str, dict[str, str]]) -> None:
    """By its name, which is its page."""
    none_of(
        {
            caller: [f"expected {name} to answer, heard {a!r}" for name, a in row.items() if a != name]
            for caller, row in heard.items()
        }
    )


def resolved(text: str) -> list[str]:
    """The addresses that busybox's nslookup found: those after the name, for the first one is the server's. Pure."""
    _, name, answer = text.partition("Name:")
    return re.findall(r"^Address(?: \d+)?:\s*(\S+)", answer, re.MULTILINE) if name else []


@when("every Pod resolves the name of the Kubernetes API", target_fixture="answers")
def pods_resolve(namespace: str, pods: tuple[Pod, ...], cluster: Cluster) -> dict[str, list[str]]:
    """What each Pod hears of the cluster's DNS; nslookup's exit code is no help, it fails over a missing AAAA."""

    def look() -> dict[str, list[str]]:
        told = printed(cluster.core, namespace, pods, ["nslookup", API_NAME])
        return {name: resolved(text) for name, text in told.items()}

    return until("every Pod resolves a name", look, lambda answers: all(answers.values()))


@then("every answer is the address of that Service")
def every_answer_is_right(answers: dict[str, list[str]], cluster: Cluster) -> None:
    """By the API."""
    service = cluster.core.read_namespaced_service("kubernetes", "default", _request_timeout=REQUEST_TIMEOUT_S)
    address = str(service.spec.cluster_ip)
    none_of(
        {
            name: unless(found == [address], f"expected {address}, heard {', '.join(found) or 'nothing'}")
            for name, found in answers.items()
        }
    )
