"""What is run in Pods goes its own way."""

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


def test_what_is_run_in_a_pod_leaves_the_client_that_others_ask_by_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = client.CoreV1Api(client.ApiClient(client.Configuration(host="https://172.31.0.11:6443")))
    asked_by: list[Any] = []

    def stream(method: Any, *_: Any, **__: Any) -> Connection:
        asked_by.append(method.__self__.api_client)
        return Connection()

    monkeypatch.setattr(pods, "stream", stream)
    assert pods.execute(shared, "default", "web", ["true"]) == pods.Output("said", "", 0)
    assert asked_by[0] is not shared.api_client
    assert asked_by[0].configuration is shared.api_client.configuration
