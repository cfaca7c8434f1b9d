"""What kubelets are told, those of nodes too that joined before it was declared."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import yaml

from environments.model import Machine, Role
from provisioning.cluster import REQUEST_TIMEOUT_S, Cluster
from provisioning.duration import duration_s
from provisioning.kubeadm import Kubeadm, Progress, kubelet_settings
from provisioning.machines import in_parallel
from provisioning.unit import started_before

CONFIG = "/var/lib/kubelet/config.yaml"
MAP = "kubelet-config"
KEY = "kubelet"
# The settings, and as a second document the file's name where kubelet was started before it was last written.
LOOK = f"""
    echo ---; cat {CONFIG}
    echo ---; {started_before("kubelet", CONFIG)}
"""
# kubeadm's own way to let a node that has joined take over what its ConfigMap says by now.
TAKE_OVER = "kubeadm upgrade node phase kubelet-config && systemctl restart kubelet"


def settled(declared: object, found: object) -> bool:
    """Whether what is found says what was declared: what was not declared may be anything. Pure.

    Durations count as long as they are, since kubeadm writes "1m0s" for "60s".
    """
    if isinstance(declared, Mapping):
        return isinstance(found, Mapping) and all(settled(value, found.get(key)) for key, value in declared.items())
    if isinstance(declared, str) and isinstance(found, str):
        with suppress(ValueError):
            return duration_s(declared) == duration_s(found)
    return declared == found


def told(declared: Mapping[str, Any], found: Mapping[str, Any], whose: str) -> list[str]:
    """A line for each setting that is otherwise. Pure."""
    return [
        f"{key} = {json.dumps(value)} for {whose}, not {json.dumps(found.get(key))}"
        for key, value in declared.items()
        if not settled(value, found.get(key))
    ]


@dataclass(frozen=True)
class KubeletsConfigured:
    """Kubelets run with what is declared; kubeadm alone would tell it to nodes that join from now on, at the join."""

    cluster: Cluster
    kubeadm: Kubeadm
    reachable: Callable[[], bool]
    name: str = "kubelet settings"

    @property
    def _declared(self) -> Mapping[str, Any]:
        return kubelet_settings(self.cluster.environment)

    def _map(self) -> dict[str, Any]:
        """What kubeadm tells nodes that join."""
        held = self.cluster.core.read_namespaced_config_map(MAP, "kube-system", _request_timeout=REQUEST_TIMEOUT_S)
        document: dict[str, Any] = yaml.safe_load(held.data[KEY])
        return document

    def _nodes(self) -> Mapping[Machine, Sequence[str]]:
        """What is otherwise on each node that has joined, where anything is."""

        def look(machine: Machine) -> Sequence[str]:
            if self.kubeadm.progress(machine) is not Progress.FINISHED:
                return []
            settings, outdated = yaml.safe_load_all(self.kubeadm.shell.check(machine, LOOK))
            differing = told(self._declared, settings or {}, machine.name)  # an empty file is written anew
            return differing or ([f"restart kubelet on {machine.name}, for its settings changed"] if outdated else [])

        environment = self.cluster.environment
        machines = [*environment.with_role(Role.CONTROL_PLANE), *environment.with_role(Role.WORKER)]
        with ThreadPoolExecutor() as pool:
            return {machine: lines for machine, lines in zip(machines, pool.map(look, machines), strict=True) if lines}

    def pending(self) -> Sequence[str]:
        """A line for each setting that is otherwise, of what nodes are told at the join and of each that has joined."""
        if not self.reachable():
            return []  # who joins is told all
        return [
            *told(self._declared, self._map(), "nodes that join"),
            *(line for lines in self._nodes().values() for line in lines),
        ]

    def apply(self) -> None:
        """Tell kubeadm, and let nodes that are otherwise take it over; Pods go on meanwhile. Raises ActionFailed."""
        document = self._map()
        if told(self._declared, document, ""):
            text = yaml.safe_dump({**document, **self._declared}, sort_keys=False)
            self.cluster.core.patch_namespaced_config_map(MAP, "kube-system", {"data": {KEY: text}})
        in_parallel(list(self._nodes()), lambda machine: self.kubeadm.shell.check(machine, TAKE_OVER))
