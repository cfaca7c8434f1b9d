"""What can be wrong between two values of an environment: overlaps, strays, missing parts. Pure but for files."""

import re
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from pydantic import BaseModel

from environments.model import Edge, Environment, Kubernetes, Machine, MetalLb, Ndb, Network, Nfs, Role, WordPress
from environments.secret import SecretMissing, SecretRef


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a file: the key, and what was expected there."""

    key: str
    expected: str


def address_faults(networks: Mapping[str, Network], machines: Sequence[tuple[int, Machine]]) -> Iterator[Fault]:
    """Addresses outside their network, used twice, or equal to a gateway; machines come with their index."""
    holders: dict[IPv4Address, str] = {
        network.gateway: f"the gateway of {name}" for name, network in networks.items() if network.gateway
    }
    for index, machine in machines:
        for name, address in machine.addresses.items():
            key = f"machines[{index}].addresses.{name}"
            network = networks.get(name)
            if network is None:
                yield Fault(key, f"expected one of the networks {', '.join(sorted(networks))}")
            elif address not in network.cidr:
                yield Fault(key, f"{address} of {machine.name} is outside {network.cidr}; expected one inside it")
            elif address in (network.cidr.network_address, network.cidr.broadcast_address):
                yield Fault(key, f"{address} of {machine.name} is not a host address of {network.cidr}")
            if address in holders:
                yield Fault(
                    key,
                    f"{address} of {machine.name} is taken by {holders[address]}; expected a free address",
                )
            holders[address] = machine.name


def network_faults(networks: Mapping[str, Network], kubernetes: Kubernetes | None) -> Iterator[Fault]:
    """Networks that overlap each other or the cluster's own subnets, and gateways outside their network."""
    spans: list[tuple[str, IPv4Network]] = [(f"networks.{name}.cidr", net.cidr) for name, net in networks.items()]
    if kubernetes:
        spans += [
            ("kubernetes.pod_subnet", kubernetes.pod_subnet),
            ("kubernetes.service_subnet", kubernetes.service_subnet),
        ]
    for index, (key, span) in enumerate(spans):
        for other_key, other in spans[:index]:
            if span.overlaps(other):
                yield Fault(key, f"{span} overlaps {other} of {other_key}; expected disjoint networks")
    for name, network in networks.items():
        if network.gateway and network.gateway not in network.cidr:
            yield Fault(f"networks.{name}.gateway", f"{network.gateway} is outside {network.cidr}")


def machine_faults(machines: Sequence[tuple[int, Machine]], template_vmid: int | None) -> Iterator[Fault]:
    """Names and VM ids used twice, and ids equal to the template's."""
    names: dict[str, int] = {}
    ids: dict[int, str] = {} if template_vmid is None else {template_vmid: "the template"}
    for index, machine in machines:
        if machine.name in names:
            yield Fault(f"machines[{index}].name", f"{machine.name} is also machines[{names[machine.name]}]")
        if machine.vmid in ids:
            yield Fault(
                f"machines[{index}].vmid",
                f"{machine.vmid} is also {ids[machine.vmid]}; expected a free VM id",
            )
        names[machine.name] = index
        ids[machine.vmid] = machine.name


def pool_faults(
    metallb: MetalLb, networks: Mapping[str, Network], machines: Sequence[tuple[int, Machine]]
) -> Iterator[Fault]:
    """A VIP pool outside every network, or over a machine's or gateway's address."""
    if not any(metallb.range.first in net.cidr and metallb.range.last in net.cidr for net in networks.values()):
        yield Fault("metallb.range", f"{metallb.range} lies in no network; expected a range inside one")
    for name, network in networks.items():
        if network.gateway and network.gateway in metallb.range:
            yield Fault("metallb.range", f"{metallb.range} collides with the gateway {network.gateway} of {name}")
    for _, machine in machines:
        for address in machine.addresses.values():
            if address in metallb.range:
                yield Fault("metallb.range", f"{metallb.range} collides with {address} of {machine.name}")


def reference_faults(
    machines: Sequence[tuple[int, Machine]],
    kubernetes: Kubernetes | None,
    metallb: MetalLb | None,
    wordpress: WordPress | None,
) -> Iterator[Fault]:
    """Names and addresses that must point at something else in the file."""
    control_planes = [machine.name for _, machine in machines if machine.role is Role.CONTROL_PLANE]
    if kubernetes and kubernetes.control_plane_endpoint not in control_planes:
        yield Fault(
            "kubernetes.control_plane_endpoint",
            f"{kubernetes.control_plane_endpoint} is no control plane; expected one of {', '.join(control_planes)}",
        )
    if wordpress and metallb and wordpress.vip not in metallb.range:
        yield Fault("wordpress.vip", f"{wordpress.vip} is outside the pool {metallb.range}")
    listed = wordpress.vip_clients if wordpress else ()
    for machine in [machine for _, machine in machines if listed and machine.role is Role.TUNNEL]:
        if not any(address in clients for address in machine.addresses.values() for clients in listed):
            told = f"{machine.name}, through which all visitors come, is not among the clients"
            yield Fault("wordpress.vip_clients", told)


def role_faults(machines: Iterable[Machine]) -> Iterator[Fault]:
    """Roles that no machine has: a part of the target would be missing."""
    held = {machine.role for machine in machines}
    for role in Role:
        if role not in held:
            yield Fault("machines", f"none has the role {role}; expected at least one")


def replica_faults(ndb: Ndb, machines: Iterable[Machine]) -> Iterator[Fault]:
    """Data nodes that cannot be parted into node groups of `replicas` each (NDB's NoOfReplicas)."""
    count = sum(machine.role is Role.NDB_DATA for machine in machines)
    if count % ndb.replicas:
        yield Fault("ndb.replicas", f"{ndb.replicas} does not divide the {count} machines with the role ndb-data")


def admits(clients: str, address: IPv4Address) -> bool:
    """Whether the host part of a MySQL account is for `address`: a network, or a text with wildcards. Pure.

    As the reference manual has it under “Specifying Account Names”; raises ValueError for a network that is none.
    """
    if "/" in clients:
        return address in IPv4Network(clients)
    wild = {"%": ".*", "_": "."}
    return re.fullmatch("".join(wild.get(letter) or re.escape(letter) for letter in clients), str(address)) is not None


def client_faults(nfs: Nfs | None, wordpress: WordPress | None, machines: Iterable[Machine]) -> Iterator[Fault]:
    """Machines of the site that its files or its database would not let in.

    A replica may come to any worker; the SQL node tries the site's password from its own address.
    """
    for machine in machines:
        addresses = machine.addresses.values()
        if nfs and machine.role is Role.WORKER and not any(address in nfs.clients for address in addresses):
            yield Fault("nfs.clients", f"{nfs.clients} leaves out {machine.name}; expected every worker")
        if wordpress and machine.role in (Role.WORKER, Role.NDB_SQL):
            clients = wordpress.database_clients
            if not any(admits(clients, address) for address in addresses):
                told = f"{clients} leaves out {machine.name}; expected every worker and the SQL node itself"
                yield Fault("wordpress.database_clients", told)


def edge_faults(edge: Edge) -> Iterator[Fault]:
    """An administration that nobody may enter: Access refuses a policy without a rule."""
    if not edge.admin_emails and not edge.admin_domains:
        yield Fault(
            "edge.admin_emails", "names nobody, nor does edge.admin_domains; expected who may administer the site"
        )


def secret_references(value: Any, key: str = "") -> Iterator[tuple[str, SecretRef]]:
    """Every secret reference below `value`, with its key."""
    if isinstance(value, SecretRef):
        yield key, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from secret_references(getattr(value, name), f"{key}.{name}" if key else name)


def secret_faults(value: BaseModel, key: str = "") -> Iterator[Fault]:
    """Secrets that cannot be read now; reads them and forgets them."""
    for where, secret in secret_references(value, key):
        try:
            secret.reveal()
        except SecretMissing as missing:
            yield Fault(where, str(missing))


def file_faults(environment: Environment) -> Iterator[Fault]:
    """Secrets, the key and certificates that cannot be used now; reads them and forgets them."""
    yield from secret_faults(environment)
    path = environment.ssh.private_key.path
    if path and path.is_file():
        try:
            load_ssh_private_key(path.read_bytes(), password=None)
        except OSError:
            pass  # told with the secrets
        except (TypeError, ValueError, UnsupportedAlgorithm):
            told = f"{path} is not used; expected OpenSSH's form of a private key, without a passphrase (ssh-keygen -p)"
            yield Fault("ssh.private_key", told)
    for key, file in (("hypervisor.ca", environment.hypervisor.ca), ("edge.ca", environment.edge.ca)):
        if file:
            try:
                ssl.create_default_context(cafile=file)
            except OSError as error:
                yield Fault(key, f"{file} cannot be used ({error.strerror}); expected a file of certificates in PEM")
