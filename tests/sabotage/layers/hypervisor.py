"""Lies about machines, as the hypervisor has them, and about their networks."""

from collections.abc import Iterator
from contextlib import contextmanager

from environments.model import Role
from tests.sabotage.lie import Lie, Tell, on
from tests.sabotage.stage import Stage

LAYER = "hypervisor"
STRANGER, STRANGERS_NAME = 999, "stranger"


def configured(role: Role, **values: str) -> Tell:
    """A machine's configuration says otherwise, until it says again what it did."""

    @contextmanager
    def told(stage: Stage) -> Iterator[None]:
        hypervisor, machine = stage.session.hypervisor, stage.with_role(role)
        before = hypervisor.config(machine.vmid)
        where = f"qemu/{machine.vmid}/config"
        try:
            hypervisor.call("put", where, **values)
            yield
        finally:
            hypervisor.call("put", where, **{key: str(before[key]) for key in values})

    return told


@contextmanager
def smaller_disk(stage: Stage) -> Iterator[None]:
    """The connector's disk has half its size, by its configuration."""
    disk = str(stage.session.hypervisor.config(stage.with_role(Role.TUNNEL).vmid)["scsi0"])
    with configured(Role.TUNNEL, scsi0=disk.replace("size=20G", "size=10G"))(stage):
        yield


def stranger(**values: str) -> Tell:
    """Somebody's machine beside ours, never started."""

    @contextmanager
    def told(stage: Stage) -> Iterator[None]:
        hypervisor, template = stage.session.hypervisor, stage.environment.hypervisor.template
        hypervisor.task("post", f"qemu/{template.vmid}/clone", newid=STRANGER, name=STRANGERS_NAME)
        try:  # a clone that is refused is somebody else's machine
            hypervisor.call("put", f"qemu/{STRANGER}/config", **{"tags": "", **values})
            yield
        finally:
            hypervisor.task("delete", f"qemu/{STRANGER}")

    return told


@contextmanager
def tagged_stranger(stage: Stage) -> Iterator[None]:
    """It carries our tag."""
    with stranger(tags=stage.environment.tag)(stage):
        yield


@contextmanager
def plugged_stranger(stage: Stage) -> Iterator[None]:
    """It has a card in the cluster's network."""
    network = next(iter(stage.with_role(Role.WORKER).addresses))
    with stranger(net0=f"virtio,bridge={stage.environment.networks[network].bridge}")(stage):
        yield


@contextmanager
def switched_off(stage: Stage) -> Iterator[None]:
    """The management node is off."""
    machine = stage.with_role(Role.NDB_MANAGEMENT)
    try:
        stage.session.hypervisor.stop(machine.vmid)
        yield
    finally:
        stage.session.hypervisor.start(machine.vmid)


@contextmanager
def duplicate(stage: Stage) -> Iterator[None]:
    """The file server takes the connector's address as well."""
    server, address = stage.with_role(Role.NFS), stage.environment.address(stage.with_role(Role.TUNNEL))
    device = (
        f"$(ip -o -4 route get {stage.environment.networks['cluster'].gateway} | sed -n 's/.* dev \\([^ ]*\\).*/\\1/p')"
    )
    with on(lambda _: server, f"ip addr add {address}/32 dev {device}", f"ip addr del {address}/32 dev {device}")(
        stage
    ):
        yield


@contextmanager
def routed(stage: Stage) -> Iterator[None]:
    """The SQL node, which has a leg in both networks, leads from the database's into the cluster's."""
    sql, caller = stage.with_role(Role.NDB_SQL), stage.with_role(Role.NDB_MANAGEMENT)
    way = stage.environment.reached_from(caller, sql)
    open_ = (
        "echo 1 > /proc/sys/net/ipv4/ip_forward; nft add table ip sabotage; "
        "nft 'add chain ip sabotage way { type nat hook postrouting priority 100; }'; "
        "nft add rule ip sabotage way masquerade"
    )
    close = "echo 0 > /proc/sys/net/ipv4/ip_forward; nft delete table ip sabotage || true"
    networks = {str(stage.environment.networks[name].cidr) for name in sql.addresses if name not in caller.addresses}
    add = "; ".join(f"ip route add {cidr} via {way}" for cidr in networks)
    remove = "; ".join(f"ip route del {cidr} via {way} || true" for cidr in networks)
    with on(lambda _: sql, open_, close)(stage), on(lambda _: caller, add, remove)(stage):
        yield


LIES = (
    Lie("wrong-cores", LAYER, ("P13",), "expected 4 cores, found 2", configured(Role.TUNNEL, cores="2")),
    Lie("wrong-weight", LAYER, ("P13",), "expected 400 CPU units, found 200", configured(Role.TUNNEL, cpuunits="200")),
    Lie("wrong-memory", LAYER, ("P13",), "expected 4096 MiB, found 2048", configured(Role.TUNNEL, memory="2048")),
    Lie("wrong-disk", LAYER, ("P13",), "expected a disk of 20 GiB, found 10", smaller_disk),
    Lie("not-started-at-boot", LAYER, ("P12",), "expected onboot 1, found 0", configured(Role.TUNNEL, onboot="0")),
    Lie("untagged", LAYER, ("P13",), "expected the tag", configured(Role.TUNNEL, tags="other")),
    Lie("tagged-stranger", LAYER, ("P13",), f"found on VM {STRANGER}", tagged_stranger),
    Lie("stranger-in-the-network", LAYER, ("P8",), f"expected no card of VM {STRANGER}", plugged_stranger),
    Lie("another-name", LAYER, ("P1", "P2", "P5"), "to have its name", configured(Role.TUNNEL, name="srv-other01")),
    Lie("switched-off", LAYER, ("P1", "P2", "P5"), "found stopped", switched_off, may=("P8", "P12")),
    Lie("duplicate-address", LAYER, ("P8",), "found 172.31.0.250/32 on", duplicate, may=("P9", "P12")),
    Lie(
        "routed-networks",
        LAYER,
        ("P8",),
        "expected no answer|expected no connection",
        routed,
        scenarios=(
            "Machines of other networks are out of reach",
            "Machines of the database's network do not reach the file server",
        ),
    ),
)
