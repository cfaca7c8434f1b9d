"""What is run in Pods goes its own way."""

from threading import Barrier
from typing import Any

import pytest
from kubernetes import client

from steps import pods


class Connection:
    """A websocket over which a command has ended."""

    returncode = 0

    def run_forever(self, timeout: float) -> None:
        pass

    def is_open(self) -> bool:
        return False

    def read_stdout(self) -> str:
        return "said"

    def read_stderr(self) -> str:
        return ""


@pytest.fixture
def shared() -> client.CoreV1Api:
    """The client that everybody asks by."""
    return client.CoreV1Api(client.ApiClient(client.Configuration(host="https://172.31.0.11:6443")))


def test_what_is_run_in_a_pod_leaves_the_client_that_others_ask_by_alone(
    shared: client.CoreV1Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_by: list[Any] = []

    def stream(method: Any, *_: Any, **__: Any) -> Connection:
        asked_by.append(method.__self__.api_client)
        return Connection()

    monkeypatch.setattr(pods, "stream", stream)
    assert pods.execute(shared, "default", "web", ["true"]) == pods.Output("said", "", 0)
    assert asked_by[0] is not shared.api_client
    assert asked_by[0].configuration is shared.api_client.configuration


def test_pods_are_asked_at_once(shared: client.CoreV1Api, monkeypatch: pytest.MonkeyPatch) -> None:
    web = [pods.Pod(f"web-{n}", f"10.244.{n}.2", f"worker0{n}") for n in (1, 2, 3)]
    all_asked = Barrier(len(web), timeout=5)  # broken, it raises: nobody waits for one that is asked afterwards

    def execute(_: Any, __: str, name: str, ___: list[str]) -> pods.Output:
        all_asked.wait()
        return pods.Output(f"{name} says", "", 0)

    monkeypatch.setattr(pods, "execute", execute)
    told = pods.printed(shared, "default", web, ["hostname"])
    assert told == {"web-1": "web-1 says", "web-2": "web-2 says", "web-3": "web-3 says"}
