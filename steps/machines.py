"""Machines as the hypervisor has them: which exist, their shape, their cards, and what else is on their networks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import Any

import pytest
from pytest_bdd import given, then, when

from certificate.verdict import NotExercised
from environments.model import Environment, Machine, Role
from provisioning.hypervisor import Hypervisor, Vm, owned
from provisioning.machines import in_parallel, size_gib
from provisioning.session import Session
from provisioning.ssh import Unreachable
from steps.complaints import none_of, unless
from steps.guests import Guests, addresses_by_mac

CPU_UNITS = 100  # qm(1), cpuunits, where control groups are of version 2, as in Proxmox VE since 7.0
DISK = re.compile(r"(scsi|virtio|sata|ide)\d+$")
NO_ANSWER = re.compile(r"timed? ?out|no route|unreachable", re.IGNORECASE)
# Whether anything answers at an address, be it by refusing: bash opens the connection and says why it could not.
CALLS = """\
for address in {addresses}; do
    (told=$(timeout 2 bash -c "exec 3<>/dev/tcp/$address/22" 2>&1); echo "$address exit $? $told" | head -1) &
done
wait
"""


@dataclass(frozen=True)
class Card:
    """One network card of a machine's configuration."""

    mac: str
    bridge: str


def cards(config: Mapping[str, Any]) -> dict[int, Card]:
    """The cards of a VM's configuration by index; MAC addresses in lower case. Pure."""
    found = {}
    for key, value in config.items():
        index = re.fullmatch(r"net(\d+)", key)
        mac = re.search(r"=([0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5})", str(value))
        bridge = re.search(r"bridge=([^,]+)", str(value))
        if index and mac and bridge:
            found[int(index[1])] = Card(mac[1].lower(), bridge[1])
    return found


def existence(machine: Machine, vms: Mapping[int, Vm]) -> list[str]:
    """What is wrong with the machine's being there. Pure."""
    vm = vms.get(machine.vmid)
    if vm is None:
        return [f"expected VM {machine.vmid}, and there is none"]
    return [
        *unless(vm.name == machine.name, f"expected VM {machine.vmid} to have its name, found {vm.name}"),
        *unless(vm.status == "running" and not vm.template, f"expected it running, found {vm.status}"),
    ]


def largest_disk_gib(config: Mapping[str, Any]) -> float:
    """The size of the largest disk that a configuration names, on whichever bus; 0 where it names none. Pure."""
    drives = [str(value) for key, value in config.items() if DISK.match(key)]
    return max((size_gib(drive) for drive in drives if "media=cdrom" not in drive), default=0)


def shape(machine: Machine, config: Mapping[str, Any]) -> list[str]:
    """What of its cores, weight, memory and disk a machine is not given. Pure; absent keys are Proxmox's defaults.

    A disk may be larger than declared: building makes none smaller.
    """
    cores = int(config.get("cores", 1)) * int(config.get("sockets", 1))
    memory_mib = int(config.get("memory", 512))
    units = int(config.get("cpuunits", CPU_UNITS))
    disk = largest_disk_gib(config)
    return [
        *unless(cores == machine.cores, f"expected {machine.cores} cores, found {cores}"),
        *unless(memory_mib == machine.memory_mib, f"expected {machine.memory_mib} MiB, found {memory_mib}"),
        *unless(machine.cpu_units in (None, units), f"expected {machine.cpu_units} CPU units, found {units}"),
        *unless(disk >= machine.disk_gib, f"expected a disk of {machine.disk_gib} GiB, found {disk:g}"),
    ]


def connections(
    environment: Environment,
    machine: Machine,
    config: Mapping[str, Any],
    seen: Mapping[str, set[IPv4Interface]],
) -> list[str]:
    """Where the cards and the addresses that the guest has `seen` on them, by MAC, differ from those declared. Pure."""
    declared = {
        (environment.networks[network].bridge, str(interface))
        for network, interface in zip(machine.addresses, environment.interfaces(machine), strict=True)
    }
    actual: set[tuple[str, str]] = set()
    for card in cards(config).values():
        addresses = {str(address) for address in seen.get(card.mac, set())} or {"no address"}
        actual |= {(card.bridge, address) for address in addresses}
    return [
        *(f"expected {address} on {bridge}, and it is not there" for bridge, address in sorted(declared - actual)),
        *(f"expected nothing but what is declared, found {a} on {bridge}" for bridge, a in sorted(actual - declared)),
    ]


def strangers(environment: Environment, bridges: set[str], configs: Mapping[Vm, Mapping[str, Any]]) -> list[str]:
    """Machines with a card on `bridges` that the environment does not put there. Pure."""
    found = []
    for vm, config in configs.items():
        machine = next((m for m in environment.machines if (m.vmid, m.name) == (vm.vmid, vm.name)), None)
        allowed = {environment.networks[network].bridge for network in machine.addresses} if machine else set()
        found += [
            f"expected no card of VM {vm.vmid} ({vm.name}) on {card.bridge}, found {card.mac}"
            for card in cards(config).values()
            if card.bridge in bridges - allowed
        ]
    return found


@pytest.fixture(scope="session")
def environment(target: Session) -> Environment:
    """What the target is declared to be."""
    return target.environment


@pytest.fixture(scope="session")
def hypervisor(target: Session) -> Hypervisor:
    """The API of the target's hypervisor."""
    return target.hypervisor


@given("the machines of the Kubernetes nodes", target_fixture="machines")
def kubernetes_nodes(environment: Environment) -> tuple[Machine, ...]:
    """Every node, control planes first."""
    return environment.cluster_machines


@given("all declared machines", target_fixture="machines")
def declared_machines(environment: Environment) -> tuple[Machine, ...]:
    """Every machine of the environment."""
    return environment.machines


@given("the machines of the database", target_fixture="machines")
def database_machines(environment: Environment) -> tuple[Machine, ...]:
    """Management, data and SQL nodes."""
    return environment.with_role(Role.NDB_MANAGEMENT, Role.NDB_DATA, Role.NDB_SQL)


@given("the machines of the control planes", target_fixture="machines")
def control_planes(environment: Environment) -> tuple[Machine, ...]:
    """The masters."""
    return environment.with_role(Role.CONTROL_PLANE)


@given("the machines of the workers", target_fixture="machines")
def workers(environment: Environment) -> tuple[Machine, ...]:
    """The workers."""
    return environment.with_role(Role.WORKER)


@given("the machine of the file server", target_fixture="machines")
def file_server_machine(environment: Environment) -> tuple[Machine, ...]:
    """The one that exports the site's files."""
    return environment.with_role(Role.NFS)


@given("the machine of the connector", target_fixture="machines")
def tunnel_machine(environment: Environment) -> tuple[Machine, ...]:
    """The one that dials out."""
    return environment.with_role(Role.TUNNEL)


@given("the machine of one worker", target_fixture="machines")
def one_worker(environment: Environment) -> tuple[Machine, ...]:
    """The last worker."""
    return environment.with_role(Role.WORKER)[-1:]


@then("each of them runs on the hypervisor under its declared id and name")
def each_runs(machines: tuple[Machine, ...], hypervisor: Hypervisor) -> None:
    """By the hypervisor's list."""
    vms = hypervisor.vms()
    none_of({machine.name: existence(machine, vms) for machine in machines})


@then("each of them is given its declared cores, weight, memory and disk")
def each_has_its_shape(machines: tuple[Machine, ...], hypervisor: Hypervisor) -> None:
    """By its configuration; what the guest makes of it is another question."""
    none_of({machine.name: shape(machine, hypervisor.config(machine.vmid)) for machine in machines})


@then("each of them starts with the hypervisor")
def each_starts_at_boot(machines: tuple[Machine, ...], hypervisor: Hypervisor) -> None:
    """By its configuration."""
    found = {machine.name: str(hypervisor.config(machine.vmid).get("onboot", 0)) for machine in machines}
    none_of({name: unless(onboot == "1", f"expected onboot 1, found {onboot}") for name, onboot in found.items()})


@then("each of them carries the environment's tag")
def each_is_tagged(machines: tuple[Machine, ...], environment: Environment, hypervisor: Hypervisor) -> None:
    """Not exercised on a target that was built by hand: the tag is this project's own custom."""
    vms = hypervisor.vms()
    if not owned(environment, vms):
        raise NotExercised(f"no machine carries the tag {environment.tag}: this target was built by other means")
    tags = {machine.name: vms[machine.vmid].tags if machine.vmid in vms else frozenset() for machine in machines}
    none_of(
        {
            name: unless(environment.tag in found, f"expected the tag {environment.tag}, found {', '.join(found)}")
            for name, found in tags.items()
        }
    )


@then("nothing that the environment does not declare carries it")
def nothing_else_is_tagged(environment: Environment, hypervisor: Hypervisor) -> None:
    """By the hypervisor's list, templates included."""
    declared = {(machine.vmid, machine.name) for machine in environment.machines}
    tagged = owned(environment, hypervisor.vms()).values()
    none_of({environment.tag: [f"found on VM {v.vmid} ({v.name})" for v in tagged if (v.vmid, v.name) not in declared]})


@then("each of them has exactly its declared addresses, on the bridges of their networks")
def each_has_its_addresses(
    machines: tuple[Machine, ...], environment: Environment, hypervisor: Hypervisor, guests: Guests
) -> None:
    """The hypervisor says which card is on which bridge, the guest which address is on which card."""
    seen = guests.ask(machines, addresses_by_mac)
    none_of(
        {
            machine.name: connections(environment, machine, hypervisor.config(machine.vmid), seen[machine.name])
            for machine in machines
        }
    )


@then("only declared machines have a card in the networks of these machines")
def no_strangers(machines: tuple[Machine, ...], environment: Environment, hypervisor: Hypervisor) -> None:
    """Every VM of this Proxmox node is looked at but templates, which never run."""
    bridges = {environment.networks[network].bridge for machine in machines for network in machine.addresses}
    vms = [vm for vm in hypervisor.vms().values() if vm.here and not vm.template]
    none_of({"networks": strangers(environment, bridges, {vm: hypervisor.config(vm.vmid) for vm in vms})})


def outsiders(environment: Environment, machine: Machine) -> tuple[Machine, ...]:
    """Machines that share no network with `machine`. Pure."""
    return tuple(other for other in environment.machines if not set(machine.addresses) & set(other.addresses))


@when("each of them calls the machines that are in none of its networks", target_fixture="calls")
def calls_outsiders(
    machines: tuple[Machine, ...], target: Session, hypervisor: Hypervisor
) -> dict[str, dict[str, str]]:
    """What each caller hears, by caller and by the name called; only machines that the runner reaches count."""
    environment, vms = target.environment, hypervisor.vms()
    there = {
        other
        for other in {other for machine in machines for other in outsiders(environment, machine)}
        if not existence(other, vms) and answers_runner(target, other)
    }
    called = {machine.name: [m for m in outsiders(environment, machine) if m in there] for machine in machines}
    callers = tuple(machine for machine in machines if called[machine.name])
    if not callers:
        raise NotExercised("no machine of another network is up, so there is nobody to be isolated from")

    heard: dict[str, dict[str, str]] = {}

    def call(machine: Machine) -> None:
        names = {str(environment.address(other)): other.name for other in called[machine.name]}
        script = CALLS.format(addresses=" ".join(names))
        rows = (line.partition(" ") for line in target.shell.check(machine, script, timeout_s=60).splitlines())
        answers = {names[address]: told for address, _, told in rows}
        # Who says nothing of a call has not made it: that is no silence of the one called.
        heard[machine.name] = {name: answers.get(name, "nothing of the call itself") for name in names.values()}

    in_parallel(callers, call)
    return heard


def answers_runner(target: Session, machine: Machine) -> bool:
    """Whether the runner can enter the machine: silence of one that is dead shows no isolation."""
    try:
        return target.shell.run(machine, "true", timeout_s=10).exit_code == 0
    except Unreachable:
        return False


@then("none of those answers")
def nobody_answers(calls: dict[str, dict[str, str]]) -> None:
    """A refused connection is an answer too; exit code 124 is timeout's."""
    none_of(
        {
            caller: [
                f"expected no answer from {name}, heard: {told}"
                for name, told in heard.items()
                if not told.startswith("exit 124") and not NO_ANSWER.search(told)
            ]
            for caller, heard in calls.items()
        }
    )
