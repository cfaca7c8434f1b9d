"""Power: reboots and power cuts, only where permitted, always healed; and the time that coming back may take."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from pytest_bdd import then, when

from certificate.verdict import NotExercised
from chaos.permission import refusal
from chaos.timers import Budget, grace_s
from environments.model import Machine, Role
from provisioning.cluster import UNAVAILABLE, Cluster
from provisioning.duration import duration_s
from provisioning.hypervisor import STOP_TIMEOUT_S, Hypervisor
from provisioning.machines import BOOT_TIMEOUT_S, in_parallel
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.session import Session
from provisioning.ssh import Unreachable
from steps.cluster import nodes_not_ready
from steps.nodes import kubelet_configuration

PROBE_TIMEOUT_S = 5
BOOT_S = 60.0  # firmware, kernel, systemd, sshd
# A container that starts before the API server does fails; kubelet tries again after 10, 20 and 40 s.
BACKOFF_S = 70.0
TAKEOVER_S = 10.0  # MetalLB's documentation: longer than this is a bug


@dataclass(frozen=True)
class Return:
    """The moment that machines were given their power again (monotonic clock), and the budget that runs since."""

    since_s: float
    budget: Budget

    def left_s(self) -> float:
        """What is left of the budget; never less than one look."""
        return max(1.0, self.since_s + self.budget.total_s - time.monotonic())


def budget_of(heartbeat_s: float, grace: float) -> Budget:
    """What a node may take from power to being Ready with its Pods serving. Pure.

    A node that was declared NotReady in between becomes Ready with its next status; a Pod's endpoint follows.
    """
    return Budget(
        {
            "boot": BOOT_S,
            "restart back-off": BACKOFF_S,
            "node grace period": grace,
            "two heartbeats": 2 * heartbeat_s,
            "takeover of the address": TAKEOVER_S,
        }
    )


def read_budget(cluster: Cluster, control_plane: Machine, worker: Machine) -> Budget:
    """The budget from the timers that the cluster runs with; raises ApiException."""
    pod = cluster.core.read_namespaced_pod(f"kube-controller-manager-{control_plane.name}", "kube-system")
    heartbeat = kubelet_configuration(cluster, worker.name).get("nodeStatusUpdateFrequency", "10s")
    return budget_of(duration_s(str(heartbeat)), grace_s(list(pod.spec.containers[0].command or [])))


@dataclass
class Power:
    """The power of machines; knows what it took away, to give it back whatever happens."""

    target: Session
    hypervisor: Hypervisor
    touched: list[Machine] = field(default_factory=list)
    _back_s: float | None = field(default=None, init=False)

    def cut(self, machines: tuple[Machine, ...]) -> None:
        """Cut the power of all at once; raises NotExercised when the environment permits fewer."""
        self._permitted(machines)
        in_parallel(machines, lambda machine: self.hypervisor.stop(machine.vmid))

    def reboot(self, machines: tuple[Machine, ...]) -> None:
        """Reboot all, and see that they did; raises as `cut`, or AssertionError when one does not come back."""
        self._permitted(machines)
        before = {machine: self._boot(machine) for machine in machines}
        in_parallel(machines, lambda machine: self.hypervisor.reboot(machine.vmid))
        for machine in machines:
            self._await_boot_after(machine, before[machine])

    def give(self) -> None:
        """Start what was touched and is stopped; raises HypervisorError."""
        in_parallel(self.touched, self._give_one)

    def heal(self) -> float:
        """Give the power back and wait until everything touched can be entered; raises DeadlineExceeded.

        Returns since when it can (monotonic clock): healed already, it was then.
        """
        in_parallel(self.touched, self._heal_one)
        self._back_s = self._back_s or time.monotonic()
        return self._back_s

    def _give_one(self, machine: Machine) -> None:
        if self.hypervisor.power(machine.vmid) == "stopped":
            self.hypervisor.start(machine.vmid)

    def _heal_one(self, machine: Machine) -> None:
        def entered() -> bool:
            # Asked each time: a shutdown that outlasted its deadline may end only now.
            self._give_one(machine)
            try:
                return bool(self._boot(machine))
            except Unreachable as error:
                raise NotYet(error.output.strip() or error.cause) from error

        poll(f"return of {machine.name}", entered, timeout_s=STOP_TIMEOUT_S + BOOT_TIMEOUT_S, interval_s=1)

    def _permitted(self, machines: tuple[Machine, ...]) -> None:
        most = self.target.environment.chaos.machines_down_max
        if len(machines) > most:
            raise NotExercised(f"{len(machines)} machines would be down, and chaos.machines_down_max is {most}")
        self.touched += machines
        self._back_s = None

    def _boot(self, machine: Machine) -> str:
        """What is another after every boot: the kernel's boot id, or in a container the start of its first process."""
        return self.target.shell.check(
            machine, "cat /proc/sys/kernel/random/boot_id; cut -d' ' -f22 /proc/1/stat", timeout_s=PROBE_TIMEOUT_S
        )

    def _await_boot_after(self, machine: Machine, before: str) -> None:
        def rebooted() -> bool:
            try:
                return self._boot(machine) != before
            except Unreachable as error:
                raise NotYet(error.output.strip() or error.cause) from error

        try:
            poll(f"reboot of {machine.name}", rebooted, timeout_s=BOOT_TIMEOUT_S, interval_s=0.5)
        except DeadlineExceeded as error:
            raise AssertionError(f"expected {machine.name} to be up after its reboot; {error}") from error


@pytest.fixture(autouse=True)
def permission(request: pytest.FixtureRequest) -> None:
    """What is marked disruptive runs only where the environment permits chaos."""
    if request.node.get_closest_marker("disruptive"):
        environment = request.getfixturevalue("target").environment
        if why := refusal(environment, environment.name):
            raise NotExercised(why)


@pytest.fixture
def power(target: Session, hypervisor: Hypervisor) -> Iterator[Power]:
    """The power of the target's machines; whatever is off at the end of the scenario is switched on."""
    power = Power(target, hypervisor)
    yield power
    power.heal()


@when("it is rebooted", target_fixture="returned")
def reboot(machines: tuple[Machine, ...], power: Power, target: Session, cluster: Cluster) -> Return:
    """By the hypervisor, as a person would."""
    budget = budget_for(target, cluster)
    since_s = time.monotonic()
    power.reboot(machines)
    return Return(since_s, budget)


@when("the power of every machine of the target is cut and returns", target_fixture="returned")
def power_cut(power: Power, target: Session, cluster: Cluster) -> Return:
    """All are off before the first is on again."""
    budget = budget_for(target, cluster)
    power.cut(target.environment.machines)
    since_s = time.monotonic()
    power.give()
    return Return(since_s, budget)


def budget_for(target: Session, cluster: Cluster) -> Budget:
    """The budget of the target's cluster."""
    environment = target.environment
    return read_budget(cluster, environment.with_role(Role.CONTROL_PLANE)[0], environment.with_role(Role.WORKER)[0])


def renewals(api: client.ApiClient) -> dict[str, datetime]:
    """When each node last renewed its lease, by the API."""
    leases = client.CoordinationV1Api(api).list_namespaced_lease("kube-node-lease", _request_timeout=PROBE_TIMEOUT_S)
    return {lease.metadata.name: lease.spec.renew_time for lease in leases.items if lease.spec.renew_time}


def not_back(names: set[str], at_first: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Nodes that have not renewed their lease since it was first looked at. Pure."""
    return sorted(name for name in names if now.get(name) is None or now[name] == at_first.get(name))


@then("each of them takes part in the cluster again within the budget")
def take_part_again(machines: tuple[Machine, ...], cluster: Cluster, returned: Return) -> None:
    """Ready, and with a lease renewed since: right after a boot the API still tells what it knew before."""
    names = {machine.name for machine in machines}
    at_first: dict[str, datetime] = {}

    def back() -> bool:
        try:
            now = renewals(cluster.api)
            found = [f"{name} {state}" for name, state in nodes_not_ready(cluster, names).items()]
        except (ApiException, *UNAVAILABLE) as error:
            raise NotYet(f"the API does not answer: {type(error).__name__}") from error
        if not at_first:
            at_first.update(now)
        found += [f"{name} silent" for name in not_back(names, at_first, now)]
        if found:
            raise NotYet("; ".join(found))
        return True

    try:
        poll("nodes take part again", back, timeout_s=returned.left_s(), interval_s=0.5)
    except DeadlineExceeded as error:
        raise AssertionError(
            f"expected every node Ready and renewing within {returned.budget.total_s:.0f} s ({returned.budget}), "
            f"found {error.last_state}"
        ) from error
