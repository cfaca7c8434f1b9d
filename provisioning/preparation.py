"""The action that makes machines into Kubernetes nodes, by the process `provisioning.nodes`."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import requests

from environments.model import Environment, Machine
from provisioning.action import ActionFailed
from provisioning.nodes.job import Answer, Job, Node
from provisioning.ssh import Shell

TIMEOUT_S = 1200


@dataclass(frozen=True)
class NodesPrepared:
    """Swap off, kernel settings, containerd, and held kubelet, kubeadm and kubectl on every node."""

    environment: Environment
    machines: tuple[Machine, ...]
    shell: Shell
    exist: bool
    name: str = "nodes prepared"

    def pending(self) -> Sequence[str]:
        """A line for each operation and node that would change something."""
        if not self.exist:
            return [f"prepare {machine.name}" for machine in self.machines]
        answer = self._run(apply=False)
        return [f"{name}: {change}" for name, node in answer.nodes.items() for change in node.changes]

    def apply(self) -> None:
        """Prepare all nodes in parallel; raises ActionFailed with the first node's failure."""
        self._run(apply=True)

    @cached_property
    def _signing_key(self) -> str:
        url = str(self.environment.kubernetes.packages.key_url)
        try:
            reply = requests.get(url, timeout=30)
            reply.raise_for_status()
        except requests.RequestException as error:
            raise ActionFailed(f"the key of the Kubernetes packages cannot be read from {url}: {error}") from error
        return reply.text

    def _run(self, *, apply: bool) -> Answer:
        kubernetes = self.environment.kubernetes
        job = Job(
            apply=apply,
            nodes=tuple(Node(name=m.name, address=str(self.environment.address(m))) for m in self.machines),
            hosts={m.name: str(self.environment.address(m)) for m in self.environment.machines},
            user=self.environment.ssh.user,
            key=str(self.shell.key),
            known_hosts=str(self.shell.state.known_hosts),
            kubernetes_source=str(kubernetes.packages.url),
            kubernetes_key=self._signing_key,
            registry_mirror=str(kubernetes.registry_mirror) if kubernetes.registry_mirror else None,
        )
        # The process ends when our end of this pipe does, even if we are killed.
        lifeline, ours = os.pipe()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "provisioning.nodes", str(lifeline)],
                input=job.model_dump_json(),
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
                pass_fds=[lifeline],
            )
        except subprocess.TimeoutExpired as error:
            raise ActionFailed(f"preparing the nodes did not end within {TIMEOUT_S} s") from error
        finally:
            os.close(lifeline)
            os.close(ours)
        if done.returncode:
            raise ActionFailed("the process that prepares nodes ended early", output=done.stdout + done.stderr)
        answer = Answer.model_validate_json(done.stdout.strip().splitlines()[-1])
        for name, node in answer.nodes.items():
            if node.failed:
                raise ActionFailed("preparing a node failed", machine=name, command=node.failed, output=node.output)
        return answer
