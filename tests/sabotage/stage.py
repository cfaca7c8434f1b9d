"""The target that lies are told to: how its machines are reached, what its scenarios say, whether it is whole again."""

import json
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kubernetes.client.exceptions import ApiException

from certificate.verdict import Finding, Verdict
from chaos.facts import Live
from chaos.permission import refusal
from environments.model import Environment, Machine, Role
from provisioning.build import Reporter
from provisioning.cluster import UNAVAILABLE, Cluster
from provisioning.machines import in_parallel
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.session import REFUSALS, Session, open_session
from steps.cluster import short_of_pods
from tests.sabotage import forked

ROOT = Path(__file__).parent.parent.parent
SNAPSHOT = "built"
SCRIPT_TIMEOUT_S = 240
WHOLE_TIMEOUT_S = 600  # a container that ended several times is started again after up to 300 s
JUDGED_TIMEOUT_S = 3600  # all drills take half of it
SAID = 4000  # characters of what it printed last
JUDGED = (0, 1)  # pytest's exit codes of a run that came to its end
EAR = "tests.sabotage.ear"
KUBECTL = "export KUBECONFIG=/etc/kubernetes/admin.conf; "


class NotJudged(Exception):
    """The scenarios could not be run; the message holds what pytest said last."""


class NotPermitted(Exception):
    """The target may not be lied to; the message says why and what to do."""


# What keeps a target from being prepared; each message says what to do.
UNPREPARED = (NotPermitted, DeadlineExceeded, *REFUSALS)


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
        """What each scenario, by name, says of the target as it is now; raises NotJudged unless all of them were heard.

        By `pytest --no-build`, as anybody would run it; only the choice of scenarios and the ear are ours.
        """
        if not scenarios:
            return {}
        with tempfile.TemporaryDirectory() as folder:
            wanted, heard, output = (Path(folder) / name for name in ("wanted.json", "heard.json", "output"))
            wanted.write_text(json.dumps(sorted(scenarios)))
            arguments = ["features", "-q", "--no-build", "--env", self.env, "--chaos", self.environment.name]
            arguments += ["-p", EAR, "--scenarios", str(wanted), "--heard", str(heard)]
            # Hypothesis' plugin loads all of it when a run ends, used or not: half as long again.
            arguments += ["-p", "no:hypothesispytest", "-p", "no:cacheprovider", *(["-p", plugin] if plugin else [])]
            try:
                code = forked.run(arguments, ROOT, output, JUDGED_TIMEOUT_S)
            except forked.TimedOut as error:
                raise NotJudged(f"pytest {error}: {output.read_text()[-SAID:]}") from error
            said = output.read_text()[-SAID:].strip()
            if code not in JUDGED or not heard.exists():
                raise NotJudged(f"pytest ended with {code}: {said}")
            found = json.loads(heard.read_text())
        if lacking := {*scenarios} - {*found}:
            raise NotJudged(f"nothing was heard of {', '.join(sorted(lacking))}: {said}")
        return {name: Finding(Verdict(verdict), reason) for name, (verdict, reason) in found.items()}

    def await_whole(self) -> None:
        """Wait until every part of the target says that it is whole; raises DeadlineExceeded with what does not."""
        live = Live(self.session, self.cluster)

        def whole() -> bool:
            live.whole()
            try:
                found = [line for lines in short_of_pods(self.cluster).values() for line in lines]
            except (ApiException, *UNAVAILABLE) as error:
                raise NotYet(f"the API does not answer: {type(error).__name__}") from error
            if found:
                raise NotYet("; ".join(found))
            return True

        poll("a whole target", whole, timeout_s=WHOLE_TIMEOUT_S, interval_s=1)

    @property
    def kept(self) -> bool:
        """Whether there is something to roll back to."""
        return all(self._kept(machine) for machine in self.environment.machines)

    def keep(self) -> None:
        """Keep the disks of all machines in place of what was kept before; raises HypervisorError.

        All of one moment, as a power cut would leave them: data nodes of which one goes on while another is copied are
        no database.
        """
        hypervisor, machines = self.session.hypervisor, self.environment.machines
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


def prepared(env: str, chaos: str, reporter: Reporter, *, keep: bool) -> Stage:
    """A built target that is whole, and that is kept as it is now where `keep` says so.

    Raises UNPREPARED.
    """
    session = open_session(env)
    if why := refusal(session.environment, chaos):
        raise NotPermitted(why)
    with session.state.locked("preparing sabotage"):
        session.build(reporter)
        stage = Stage(session, env)
        stage.await_whole()
        if keep:
            stage.keep()
    return stage
