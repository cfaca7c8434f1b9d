"""Lies about the database: where tables are kept, who takes part, and whom it lets in."""

from collections.abc import Iterator
from contextlib import contextmanager

from environments.model import Machine, Role
from provisioning.database import quoted
from provisioning.machines import in_parallel
from provisioning.ndb import DATA_DIRECTORY
from provisioning.nodes.ndb import CONFIG
from tests.sabotage.layers.cluster import kubectl
from tests.sabotage.lie import Lie, Tell, on
from tests.sabotage.stage import Stage

LAYER = "database"
SCHEMA_TABLE = "wordpress.wp_termmeta"
FORWARDING = "/etc/sysctl.d/sabotage.conf"


def sql_node(stage: Stage) -> Machine:
    """The one."""
    return stage.with_role(Role.NDB_SQL)


def management(stage: Stage) -> Machine:
    """The one."""
    return stage.with_role(Role.NDB_MANAGEMENT)


def second_data_node(stage: Stage) -> Machine:
    """The last one."""
    return stage.with_role(Role.NDB_DATA, -1)


def sql(tell: str, undo: str) -> Tell:
    """Told and taken back by root; `@@` stands for the site's password, which travels by standard input."""

    @contextmanager
    def told(stage: Stage) -> Iterator[None]:
        database, password = stage.session.database, quoted(stage.environment.wordpress.database_password.reveal())
        try:
            database.query(tell.replace("@@", password))
            yield
        finally:
            database.query(undo)

    return told


@contextmanager
def data_node_stopped(stage: Stage) -> Iterator[None]:
    """One of two does not run."""
    ndb, machine = stage.session.ndb, second_data_node(stage)
    try:
        ndb.stop(machine)
        yield
    finally:
        ndb.restart(machine)
        ndb.await_members(ndb.members)


def configured(edit: str) -> Tell:
    """The cluster's configuration says otherwise, and the whole cluster has been started with it."""

    @contextmanager
    def told(stage: Stage) -> Iterator[None]:
        try:
            stage.run(management(stage), f"cp -p {CONFIG} {CONFIG}.sabotage; sed -i '{edit}' {CONFIG}")
            restarted(stage)
            yield
        finally:
            stage.run(management(stage), f"mv {CONFIG}.sabotage {CONFIG}")
            restarted(stage)

    return told


def restarted(stage: Stage) -> None:
    """All data nodes at once: two that differ much in what they expect of each other take each other for dead."""
    ndb = stage.session.ndb
    in_parallel(ndb.data, ndb.stop)
    for machine in (*ndb.management, *ndb.data):
        ndb.restart(machine)
    ndb.await_members(ndb.members)


def made_anew(edit: str) -> Tell:
    """The cluster is another one, made from nothing by another configuration; the snapshot brings the old one back."""

    @contextmanager
    def told(stage: Stage) -> Iterator[None]:
        ndb = stage.session.ndb
        for machine in ndb.data:
            ndb.stop(machine)
            stage.run(machine, f"rm -rf {DATA_DIRECTORY}/ndb_*_fs")
        stage.run(management(stage), f"sed -i '{edit}' {CONFIG}")
        for machine in (*ndb.management, *ndb.data):
            ndb.restart(machine)
        ndb.restart(sql_node(stage))
        stage.session.database.await_ready()
        yield

    return told


@contextmanager
def through_the_management_node(stage: Stage) -> Iterator[None]:
    """What the SQL node has to say to the data nodes goes through the management node."""
    ndb = stage.session.ndb
    way = next(iter(management(stage).addresses.values()))
    places = [next(iter(machine.addresses.values())) for machine in ndb.data]
    redirects = "/proc/sys/net/ipv4/conf/*/send_redirects"
    kept = "/run/sabotage.redirects"
    open_ = (
        f'for f in {redirects}; do echo "echo $(cat $f) > $f"; done > {kept}; '
        f"echo net.ipv4.ip_forward=1 > {FORWARDING}; sysctl -q -p {FORWARDING}; "  # also when it has its power back
        f"for f in {redirects}; do echo 0 > $f; done"  # nobody is told the shorter way
    )
    add = "; ".join(f"ip route add {place} via {way}" for place in places)
    remove = "; ".join(f"ip route del {place} via {way} || true" for place in places)
    close = f"rm -f {FORWARDING}; echo 0 > /proc/sys/net/ipv4/ip_forward; test ! -e {kept} || sh {kept}; rm -f {kept}"
    with on(management, open_, close)(stage), on(sql_node, add, remove)(stage):
        yield


@contextmanager
def one_network(stage: Stage) -> Iterator[None]:
    """The SQL node has lost its leg in the cluster's network."""
    database = stage.session.database
    leg = next(i for i in stage.environment.interfaces(database.machine) if i.ip == database.address)
    device = "$(cat /run/sabotage.dev)"
    find = f"ip -o -4 addr show | sed -n 's/^[0-9]*: \\([^ ]*\\) .*{leg.ip}\\/.*/\\1/p' > /run/sabotage.dev"
    with on(sql_node, f"{find}; ip addr del {leg} dev {device}", f"ip addr add {leg} dev {device} || true")(stage):
        yield


@contextmanager
def a_node_of_kubernetes(stage: Stage) -> Iterator[None]:
    """A node of the cluster goes by the SQL node's name."""
    name = sql_node(stage).name
    node = (
        f'{{"apiVersion": "v1", "kind": "Node", "metadata": {{"name": "{name}"}}, "spec": {{"unschedulable": true}}}}'
    )
    with kubectl(f"create -f - <<'END'\n{node}\nEND", f"delete node {name} --ignore-not-found")(stage):
        yield


def unit_disabled(role: Role, unit: str, at: int = 0) -> Tell:
    """A service runs, and will not after a reboot."""
    return on(
        lambda stage: stage.with_role(role, at), f"systemctl disable -q {unit}", f"systemctl enable -q --now {unit}"
    )


INNODB = sql(f"ALTER TABLE {SCHEMA_TABLE} ENGINE=InnoDB", f"ALTER TABLE {SCHEMA_TABLE} ENGINE=ndbcluster")
LIES = (
    Lie(
        "site-table-in-innodb",
        LAYER,
        ("P5",),
        "wp_termmeta: expected it in the NDB cluster, found it in InnoDB",
        INNODB,
        scenarios=("The site's tables are replicated",),
    ),
    Lie(
        "a-backup-that-lacks-a-table",
        LAYER,
        ("P5",),
        "wp_termmeta: .*no such table",
        INNODB,
        scenarios=("A backup taken while the database is at work restores into an empty cluster",),
    ),
    Lie(
        "later-tables-in-innodb",
        LAYER,
        ("P5",),
        "expected it in the NDB cluster, found it in InnoDB",
        sql("SET GLOBAL default_storage_engine=InnoDB", "SET GLOBAL default_storage_engine=ndbcluster"),
        scenarios=("A table that is made later is replicated too",),
    ),
    Lie(
        "data-node-stopped",
        LAYER,
        ("P5",),
        "expected node 3 connected",
        data_node_stopped,
        scenarios=("Every member of the cluster is connected",),
        may=("P12",),
    ),
    Lie(
        "heartbeat-of-an-hour",
        LAYER,
        ("P5",),
        "expected a heartbeat every 1500 ms, found 3600000",
        configured("s/^HeartbeatIntervalDbDb=.*/HeartbeatIntervalDbDb=3600000/"),
        scenarios=("A data node that falls silent is missed as soon as declared",),
    ),
    Lie(
        "one-replica-of-the-data",
        LAYER,
        ("P5",),
        "expected 2 data nodes, found|expected .* read",
        made_anew("s/^NoOfReplicas=.*/NoOfReplicas=1/"),
        scenarios=("The data nodes are replicas of each other",),
        rollback=True,
        may=("P3", "P4", "P7", "P9", "P10", "P11"),
    ),
    Lie(
        "data-node-out-of-its-group",
        LAYER,
        ("P5",),
        "expected a node group for|expected 2 data nodes",
        made_anew("s/^NoOfReplicas=.*/NoOfReplicas=1/; /^NodeId=3/a NodeGroup=65536"),
        scenarios=("The data nodes are replicas of each other",),
        rollback=True,
        may=("P3", "P4", "P7", "P9", "P10", "P11"),
    ),
    Lie(
        "later-tables-keep-nothing",
        LAYER,
        ("P5",),
        "without srv.*: expected .* read",
        sql("SET GLOBAL default_storage_engine=BLACKHOLE", "SET GLOBAL default_storage_engine=ndbcluster"),
        scenarios=("Each data node in turn is stopped",),
    ),
    Lie("database-among-kubernetes-nodes", LAYER, ("P6",), "and a node has its", a_node_of_kubernetes, may=("P2",)),
    Lie(
        "data-node-not-at-boot",
        LAYER,
        ("P12",),
        "expected ndbmtd active and enabled, found active and disabled",
        unit_disabled(Role.NDB_DATA, "ndbmtd", -1),
    ),
    Lie(
        "data-node-stays-away-after-a-power-cut",
        LAYER,
        ("P5",),
        "expected every member back",
        unit_disabled(Role.NDB_DATA, "ndbmtd", -1),
        scenarios=("All machines of the database lose their power at once",),
        may=("P12",),
    ),
    Lie(
        "grants-too-wide",
        LAYER,
        ("P11",),
        "expected .*, found .*GRANT SELECT ON",
        sql(
            "GRANT SELECT ON *.* TO 'wordpress'@'172.31.0.%'",
            "REVOKE SELECT ON *.* FROM 'wordpress'@'172.31.0.%'",
        ),
    ),
    Lie(
        "user-from-anywhere",
        LAYER,
        ("P11",),
        "expected the user from .*, found it from .*'%'|expected the server to refuse the user",
        sql("CREATE USER 'wordpress'@'%' IDENTIFIED BY @@", "DROP USER 'wordpress'@'%'"),
    ),
    Lie(
        "root-from-anywhere",
        LAYER,
        ("P11",),
        "expected .*, found .*root.*%",
        sql("CREATE USER 'root'@'%' IDENTIFIED BY @@", "DROP USER 'root'@'%'"),
    ),
    Lie(
        "user-locked-out",
        LAYER,
        ("P11",),
        "expected the user to be let in",
        sql(
            "ALTER USER 'wordpress'@'172.31.0.%' ACCOUNT LOCK",
            "ALTER USER 'wordpress'@'172.31.0.%' ACCOUNT UNLOCK",
        ),
        scenarios=("The user is let in from the cluster's network",),
        may=("P3", "P4", "P5", "P7", "P9", "P10"),
    ),
    Lie(
        "user-let-in-from-the-databases-network",
        LAYER,
        ("P11",),
        "expected the server to refuse the user",
        sql("CREATE USER 'wordpress'@'10.20.20.%' IDENTIFIED BY @@", "DROP USER 'wordpress'@'10.20.20.%'"),
        scenarios=("The user is turned away from another network",),
    ),
    Lie(
        "sql-node-on-one-network",
        "hypervisor",
        ("P8",),
        "expected 172.31.0.120/24 on vmbr1, and it is not there",
        one_network,
        scenarios=("Machines have their declared addresses and no others",),
        may=("P3", "P4", "P5", "P7", "P9", "P10", "P11"),
    ),
    Lie(
        "sql-node-stays-away",
        "limits",
        ("P5",),
        "expected the site back",
        unit_disabled(Role.NDB_SQL, "mysql"),
        scenarios=("Losing the SQL node takes the site down and loses nothing",),
        may=("P12",),
    ),
    Lie(
        "data-by-way-of-the-management-node",
        "limits",
        ("P5",),
        "expected every visit answered",
        through_the_management_node,
        scenarios=("Losing the management node leaves the site up",),
    ),
)
