"""Growth: a machine more than declared, built by the actions that build every target, and taken away again."""

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

import pytest
from pytest_bdd import then, when

from certificate.verdict import NotExercised
from environments.model import Environment, Machine, Role
from provisioning.action import Action, ActionFailed
from provisioning.addons import WorkersLabelled
from provisioning.cluster import REQUEST_TIMEOUT_S, Cluster
from provisioning.hypervisor import Hypervisor
from provisioning.kubeadm import Kubeadm, NodesJoined
from provisioning.machines import Machines, MachinesCloned, MachinesEntered, MachinesRunning, MachinesShaped, answers
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.preparation import NodesPrepared
from provisioning.session import Session
from provisioning.ssh import Shell
from steps.cluster import each_takes_pods, nodes_not_ready

READY_TIMEOUT_S = 120


@dataclass(frozen=True)
class Grown:
    """The environment with one worker more."""

    environment: Environment
    machine: Machine


def free_address(environment: Environment, network: str) -> IPv4Address:
    """The highest address of a network that nothing declared has and nobody answers at; raises NotExercised."""
    cidr = environment.networks[network].cidr
    taken = {m.addresses[network] for m in environment.machines if network in m.addresses}
    taken |= {gateway} if (gateway := environment.networks[network].gateway) else set()
    for number in reversed(range(int(cidr.network_address) + 1, int(cidr.broadcast_address))):
        address = IPv4Address(number)
        if address not in taken and address not in environment.metallb.range and not answers(str(address)):
            return address
    raise NotExercised(f"the network {network} has no address left for another worker")


def grown(environment: Environment, taken: Iterable[int]) -> Grown:
    """One worker more, like the last one, with a name, an id and an address of its own; raises NotExercised."""
    last = environment.with_role(Role.WORKER)[-1]
    (network,) = last.addresses
    machine = last.model_copy(
        update={
            "name": f"{last.name}-{secrets.token_hex(2)}",
            "vmid": max({*taken, *(m.vmid for m in environment.machines)}) + 1,
            "addresses": {network: free_address(environment, network)},
        }
    )
    return Grown(environment.model_copy(update={"machines": (*environment.machines, machine)}), machine)


def actions(target: Session, more: Grown) -> tuple[Action, ...]:
    """What brings the one machine up and into the cluster, as the bring-up does it."""
    shell = Shell(more.environment, target.state)
    machines = Machines(more.environment, (more.machine,), target.hypervisor, shell)
    kubeadm, cluster = Kubeadm(more.environment, shell), Cluster(more.environment, shell)
    return (
        MachinesCloned(machines),
        MachinesShaped(machines),
        MachinesRunning(machines),
        MachinesEntered(machines),
        NodesPrepared(more.environment, (more.machine,), shell, True),
        NodesJoined(kubeadm, Role.WORKER, "workers joined"),
        WorkersLabelled(cluster, lambda: True),
    )


@pytest.fixture
def one_more(target: Session, hypervisor: Hypervisor, cluster: Cluster) -> Iterator[Grown]:
    """Not there yet; whatever came to be of it is gone at the end of the scenario."""
    more = grown(target.environment, hypervisor.vms())
    yield more
    remove(more, hypervisor, cluster)


def remove(more: Grown, hypervisor: Hypervisor, cluster: Cluster) -> None:
    """Out of the cluster, off, and gone; raises ApiException and HypervisorError."""
    name = more.machine.name
    if name in {node.metadata.name for node in cluster.core.list_node(_request_timeout=REQUEST_TIMEOUT_S).items}:
        cluster.core.delete_node(name, _request_timeout=REQUEST_TIMEOUT_S)
    if (vm := hypervisor.vms().get(more.machine.vmid)) is not None:
        if vm.status != "stopped":
            hypervisor.stop(more.machine.vmid)
        hypervisor.task("delete", f"qemu/{more.machine.vmid}")


@when("one worker more is built than declared")
def build_one_more(target: Session, one_more: Grown) -> None:
    """By the same actions, each only where it is not so already."""
    for action in actions(target, one_more):
        try:
            if action.pending():
                action.apply()
        except ActionFailed as error:
            raise AssertionError(
                f"expected {one_more.machine.name} to be built, found: {action.name}: {error}"
            ) from error


@then("it becomes a Ready node that takes new Pods")
def one_more_is_ready(one_more: Grown, cluster: Cluster) -> None:
    """By the API."""
    name = one_more.machine.name

    def ready() -> bool:
        if found := nodes_not_ready(cluster, {name}):
            raise NotYet(found[name])
        try:
            each_takes_pods((one_more.machine,), cluster)
        except AssertionError as error:  # the taint of a node that was not Ready goes a moment later
            raise NotYet(str(error)) from error
        return True

    try:
        poll(f"{name} is Ready", ready, timeout_s=READY_TIMEOUT_S, interval_s=1)
    except DeadlineExceeded as error:
        raise AssertionError(f"expected {name} Ready and open to Pods, found {error.last_state}") from error
