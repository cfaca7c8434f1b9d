"""Kubelets' settings converge on nodes that joined before they were declared."""

from typing import Any
from unittest import mock

import pytest
import yaml

from environments.load import find, load
from environments.model import Environment, Machine
from provisioning.duration import duration_s
from provisioning.kubeadm import Progress
from provisioning.kubelet import CONFIG, KEY, LOOK, TAKE_OVER, KubeletsConfigured, settled

OLD = {
    "cgroupDriver": "systemd",
    "evictionPressureTransitionPeriod": "5m0s",
    "staticPodPath": "/etc/kubernetes/manifests",
}
NEW = {**OLD, "evictionPressureTransitionPeriod": "30s"}


class Nodes:
    """Nodes that have joined, each with settings of its own, and what kubeadm tells those that join."""

    def __init__(self, environment: Environment, joined: dict[str, dict[str, Any]], told: dict[str, Any]) -> None:
        self.held, self.outdated, self.told = joined, set[str](), told
        cluster, kubeadm = mock.Mock(environment=environment), mock.Mock()
        cluster.core.read_namespaced_config_map = lambda *_, **__: mock.Mock(data={KEY: yaml.safe_dump(self.told)})
        cluster.core.patch_namespaced_config_map = self.patch
        kubeadm.progress = lambda m: Progress.FINISHED if m.name in self.held else Progress.NOT_BEGUN
        kubeadm.shell.check = self.check
        self.action = KubeletsConfigured(cluster, kubeadm, lambda: True)

    def patch(self, name: str, namespace: str, body: dict[str, Any]) -> None:
        assert (name, namespace) == ("kubelet-config", "kube-system")
        self.told = yaml.safe_load(body["data"][KEY])

    def check(self, machine: Machine, script: str) -> str:
        if script == TAKE_OVER:
            self.held[machine.name] = self.told
            self.outdated -= {machine.name}
            return ""
        assert script == LOOK
        held = self.held[machine.name]
        return f"---\n{yaml.safe_dump(held) if held else ''}---\n{CONFIG if machine.name in self.outdated else ''}\n"


@pytest.fixture
def environment() -> Environment:
    return load(find("lab"))


@pytest.mark.parametrize(
    ("joined", "told", "pending"),
    [
        ({}, NEW, []),
        ({"srvk8s-master01": NEW, "srvk8s-worker01": {**NEW, "maxPods": 50}}, NEW, []),
        (
            {"srvk8s-master01": NEW, "srvk8s-worker02": OLD},
            OLD,
            [
                'evictionPressureTransitionPeriod = "30s" for nodes that join, not "5m0s"',
                'evictionPressureTransitionPeriod = "30s" for srvk8s-worker02, not "5m0s"',
            ],
        ),
        ({"srvk8s-worker02": {}}, NEW, None),
    ],
)
def test_settings_are_told_to_nodes_that_join_and_taken_over_by_those_that_have(
    environment: Environment, joined: dict[str, dict[str, Any]], told: dict[str, Any], pending: list[str] | None
) -> None:
    nodes = Nodes(environment, joined, told)
    lines = nodes.action.pending()
    assert lines == pending if pending is not None else len(lines) == 2
    nodes.action.apply()
    assert nodes.action.pending() == []
    assert nodes.told == NEW, "what kubeadm had told besides is gone"


def test_a_kubelet_that_was_not_restarted_since_is_restarted(environment: Environment) -> None:
    """As where a run was cut off between the two."""
    nodes = Nodes(environment, {"srvk8s-worker01": NEW}, NEW)
    nodes.outdated = {"srvk8s-worker01"}
    assert nodes.action.pending() == ["restart kubelet on srvk8s-worker01, for its settings changed"]
    nodes.action.apply()
    assert nodes.action.pending() == []


def test_before_there_is_a_cluster_nothing_is_asked(environment: Environment) -> None:
    assert KubeletsConfigured(mock.Mock(environment=environment), mock.Mock(), lambda: False).pending() == []


@pytest.mark.parametrize(("text", "seconds"), [("1m0s", 60), ("60s", 60), ("1h1.5s", 3601.5), ("20ms", 0.02)])
def test_durations_are_read_as_go_writes_them(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["1m x", "", "systemd"])
def test_what_is_no_duration_is_not_read_as_one(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        duration_s(text)


@pytest.mark.parametrize(
    ("declared", "found", "so"),
    [
        ("60s", "1m0s", True),
        ("60s", "2m0s", False),
        ({"a": "1s"}, {"a": "1s", "b": 2}, True),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, False),
        ({"a": 1}, None, False),
        ([1, 2], [2, 1], False),
        ("text", 5, False),
        (60, "1m0s", False),
    ],
)
def test_only_what_was_declared_has_to_be_so(declared: object, found: object, so: bool) -> None:
    assert settled(declared, found) is so
