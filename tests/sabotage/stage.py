"""The target that lies are told to: how its machines are reached, what its scenarios say, whether it is whole again."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kubernetes.client.exceptions import ApiException

from certificate.verdict import Finding, Verdict
from chaos.facts import WHOLE, Live
from environments.model import Environment, Machine, Role
from provisioning.cluster import UNAVAILABLE, Cluster
from provisioning.machines import in_parallel
from provisioning.poll import NotYet, poll
from provisioning.session import Session
from steps.cluster import short_of_pods

ROOT = Path(__file__).parent.parent.parent
SNAPSHOT = "built"
SCRIPT_TIMEOUT_S = 240
WHOLE_TIMEOUT_S = 600  # a container that ended several times is started again after up to 300 s
JUDGED_TIMEOUT_S = 1500
EAR = "tests.sabotage.ear"
KUBECTL = "export KUBECONFIG=/etc/kubernetes/admin.conf; "


class NotJudged(Exception):
    """The scenarios could not be run; the message holds what pytest said last."""


@dataclass(frozen=True)
class Stage:
    """A session that is not held: the scenarios, a process of their own, hold the target while they run."""

    session: Session
    env: str

    @property
    def environment(self) -> Environment:
        """What the target is declared to be."""
        return self.session.environment

    @cached_property
    def cluster(self) -> Cluster:
        """Its Kubernetes API."""
        return self.session.cluster

    def with_role(self, role: Role, at: int = 0) -> Machine:
        """The at-th machine of a role."""
        return self.environment.with_role(role)[at]

    def run(self, machine: Machine, script: str, stdin: str = "") -> str:
        """What `script` prints on a machine; raises ActionFailed."""
        return self.session.shell.check(machine, f"set -e; {script}", stdin=stdin, timeout_s=SCRIPT_TIMEOUT_S)

    def kubectl(self, words: str, stdin: str = "") -> str:
        """What kubectl prints, as the cluster's administrator; raises ActionFailed."""
        return self.run(self.with_role(Role.CONTROL_PLANE), f"{KUBECTL}kubectl {words}", stdin)

    def judge(self, scenarios: Collection[str], plugin: str = "") -> Mapping[str, Finding]:
        """What each scenario, by name, says of the target as it is now; raises NotJudged.

        By `pytest --no-build`, as anybody would run it; only the choice of scenarios and the ear are ours.
        """
        with tempfile.TemporaryDirectory() as folder:
            wanted, heard = Path(folder) / "wanted.json", Path(folder) / "heard.json"
            wanted.write_text(json.dumps(sorted(scenarios)))
            command = [sys.executable, "-m", "pytest", "features", "-q", "--no-build", "--env", self.env]
            command += ["-p", EAR, "--scenarios", str(wanted), "--heard", str(heard)]
            # Hypothesis' plugin loads all of it when a run ends, used or not: half as long again.
            command += ["-p", "no:hypothesispytest"]
            command += ["--chaos", self.environment.name, "-p", "no:cacheprovider", *(["-p", plugin] if plugin else [])]
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=JUDGED_TIMEOUT_S, check=False
            )
            if not heard.exists():
                raise NotJudged(f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}".strip())
            found = json.loads(heard.read_text())
        return {name: Finding(Verdict(verdict), reason) for name, (verdict, reason) in found.items()}

    def await_whole(self) -> None:
        """Wait until every part of the target says that it is whole; raises DeadlineExceeded with what does not."""
        live = Live(self.session, self.cluster)

        def whole() -> bool:
            found = [f"{name}: {state}" for name, state in live.states().items() if state != WHOLE]
            try:
                found += [line for lines in short_of_pods(self.cluster).values() for line in lines]
            except (ApiException, *UNAVAILABLE) as error:
                raise NotYet(f"the API does not answer: {type(error).__name__}") from error
            if found:
                raise NotYet("; ".join(found))
            return True

        poll("a whole target", whole, timeout_s=WHOLE_TIMEOUT_S, interval_s=1)

    def keep(self) -> None:
        """Keep the disks of all machines, unless they were kept before; raises HypervisorError.

        All of one moment, as a power cut would leave them: data nodes of which one goes on while another is copied are
        no database.
        """
        hypervisor, machines = self.session.hypervisor, self.environment.machines
        if all(self._kept(machine) for machine in machines):
            return
        try:
            in_parallel(machines, lambda machine: hypervisor.suspend(machine.vmid))
            for machine in machines:
                if self._kept(machine):
                    hypervisor.task("delete", f"qemu/{machine.vmid}/snapshot/{SNAPSHOT}")
                hypervisor.task("post", f"qemu/{machine.vmid}/snapshot", snapname=SNAPSHOT)
        finally:
            in_parallel(machines, lambda machine: hypervisor.resume(machine.vmid))
        self.await_whole()

    def roll_back(self) -> None:
        """Put all disks back to what was kept, start every machine, and wait; raises HypervisorError."""
        hypervisor, machines = self.session.hypervisor, self.environment.machines
        in_parallel([m for m in machines if hypervisor.power(m.vmid) != "stopped"], lambda m: hypervisor.stop(m.vmid))
        for machine in machines:
            hypervisor.task("post", f"qemu/{machine.vmid}/snapshot/{SNAPSHOT}/rollback")
        in_parallel(machines, lambda machine: hypervisor.start(machine.vmid))
        self.await_whole()

    def _kept(self, machine: Machine) -> bool:
        rows = self.session.hypervisor.call("get", f"qemu/{machine.vmid}/snapshot")
        return SNAPSHOT in {row["name"] for row in rows}
