"""A backup of the database restored into an empty cluster of its own, beside the one that goes on working.

The second cluster borrows the database's machines: one member of each kind, other ports and directories, transient
units that no reboot brings back. What it leaves is removed at the end, and before a next one begins.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from certificate.verdict import NotExercised
from environments.model import Machine
from provisioning.action import ActionFailed
from provisioning.database import Database
from provisioning.ndb import DATA_DIRECTORY, Ndb
from provisioning.poll import NotYet, poll
from provisioning.session import Session
from provisioning.ssh import Shell

MANAGEMENT_PORT, DATA_PORT, SQL_PORT = 11186, 11861, 33306
HOME = f"{DATA_DIRECTORY}/haproof-scratch"
SOCKET = "/run/haproof-scratch/mysqld.sock"
START_TIMEOUT_S = 180
MANAGEMENT_NODE, DATA_NODE, SQL_NODE = 1, 2, 3

MISSING = ("no such table",)

Tables = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Scratch:
    """An empty cluster: its machines, and where its management server is reached."""

    shell: Shell
    management: Machine
    data: Machine
    sql: Machine
    connect: str

    def query(self, sql: str) -> list[tuple[str, ...]]:
        """Rows that `sql` gives there; raises ActionFailed."""
        command = f"mysql --no-defaults --socket={SOCKET} --user=root --batch --skip-column-names"
        return [tuple(line.split("\t")) for line in self.shell.check(self.sql, command, stdin=sql).splitlines()]

    def unit(self, machine: Machine, name: str, command: str, before: str = "true") -> None:
        """Run `command` as a transient unit of the user mysql, after `before` has made its directory ready."""
        script = (
            f"install -d -o mysql -g mysql {HOME} /run/haproof-scratch && {before} && "
            f"systemd-run --quiet --collect --unit=haproof-scratch-{name} --uid=mysql {command}"
        )
        self.shell.check(machine, script, timeout_s=120)

    def clear(self) -> None:
        """End its units and remove what they wrote."""
        for machine, name in ((self.sql, "sql"), (self.data, "data"), (self.management, "management")):
            self.shell.check(
                machine,
                f"! systemctl -q is-active haproof-scratch-{name} || systemctl stop haproof-scratch-{name}; "
                f"rm -rf {HOME} /run/haproof-scratch",
                timeout_s=120,
            )


@contextmanager
def empty_cluster(target: Session, ndb: Ndb, database: Database) -> Iterator[Scratch]:
    """A cluster without tables, for as long as the block lasts; raises ActionFailed and DeadlineExceeded."""
    environment = target.environment
    management, data, sql = ndb.management[0], ndb.data[-1], database.machine
    address = {machine: environment.reached_from(ndb.management[0], machine) for machine in (management, data, sql)}
    scratch = Scratch(target.shell, management, data, sql, f"{address[management]}:{MANAGEMENT_PORT}")
    config = f"""[ndbd default]
NoOfReplicas=1
DataMemory={environment.ndb.data_memory_mib}M
DataDir={HOME}
ServerPort={DATA_PORT}
MaxNoOfExecutionThreads=2
[ndb_mgmd]
NodeId={MANAGEMENT_NODE}
HostName={address[management]}
PortNumber={MANAGEMENT_PORT}
DataDir={HOME}
[ndbd]
NodeId={DATA_NODE}
HostName={address[data]}
[mysqld]
NodeId={SQL_NODE}
HostName={address[sql]}
[api]
[api]
"""
    scratch.clear()
    try:
        target.shell.check(management, f"mkdir -p {HOME} && cat > {HOME}/config.ini", stdin=config)
        scratch.unit(
            management,
            "management",
            f"ndb_mgmd --nodaemon --config-cache=false --ndb-nodeid={MANAGEMENT_NODE} --config-file={HOME}/config.ini",
        )
        scratch.unit(
            data,
            "data",
            f"ndbmtd --nodaemon --initial --ndb-nodeid={DATA_NODE} --ndb-connectstring={scratch.connect}",
        )
        server = f"mysqld --no-defaults --datadir={HOME}/sql"
        scratch.unit(
            sql,
            "sql",
            f"{server} --socket={SOCKET} --port={SQL_PORT} --bind-address=127.0.0.1 --mysqlx=0 --disable-log-bin "
            f"--performance-schema=OFF --innodb-buffer-pool-size=32M --ndbcluster --ndb-nodeid={SQL_NODE} "
            f"--ndb-connectstring={scratch.connect}",
            before=f"install -d -o mysql -g mysql {HOME}/sql && {server} --user=mysql --initialize-insecure",
        )

        def ready() -> bool:
            try:
                told = scratch.query("SHOW STATUS LIKE 'Ndb_number_of_ready_data_nodes'")
            except ActionFailed as error:
                raise NotYet(error.output.strip() or error.cause) from error
            if told != [("Ndb_number_of_ready_data_nodes", "1")]:
                raise NotYet(str(told))
            return True

        poll("the empty cluster", ready, timeout_s=START_TIMEOUT_S, interval_s=1)
        yield scratch
    finally:
        scratch.clear()


def fingerprints(rows: list[tuple[str, ...]], counts: list[tuple[str, ...]]) -> Tables:
    """Rows and checksum of each table, from what CHECKSUM TABLE and the counts say. Pure."""
    checksums = {name.rpartition(".")[2]: checksum for name, checksum in rows}
    return {name: (count, checksums[name]) for name, count in counts}


def copied(scratch: Scratch, schema: str, names: list[str]) -> Tables:
    """Rows and checksum of each table that came to be there; one that the backup did not hold did not.

    A server learns of a restored table when the table is asked for by name, which its checksum does (NULL: there is no
    such table); SHOW TABLES lists it some time later.
    """
    checksums = scratch.query(ask(schema, names)[0])
    there = [name for name, (_, checksum) in zip(names, checksums, strict=True) if checksum != "NULL"]
    return fingerprints(checksums, scratch.query(ask(schema, there)[1])) if there else {}


def ask(schema: str, names: list[str]) -> tuple[str, str]:
    """The two questions whose answers `fingerprints` takes. Pure."""
    tables = ", ".join(f"`{schema}`.`{name}`" for name in names)
    counts = " UNION ALL ".join(f"SELECT '{name}', COUNT(*) FROM `{schema}`.`{name}`" for name in names)
    return f"CHECKSUM TABLE {tables}", counts


def backup(ndb: Ndb) -> int:
    """Take a backup of the working cluster, and return its number; raises ActionFailed."""
    script = "ndb_mgm --ndb-connectstring=localhost -e 'START BACKUP WAIT COMPLETED'"
    told = ndb.shell.check(ndb.management[0], script, timeout_s=300)
    match = re.search(r"Backup (\d+) started from node \d+ completed", told)
    if not match:
        raise ActionFailed("the backup did not complete", machine=ndb.management[0].name, command=script, output=told)
    return int(match[1])


def restored(target: Session, ndb: Ndb, database: Database) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Rows and checksum of each of the site's tables in the working cluster, and in one restored from its backup.

    Raises NotExercised when the site was written to meanwhile: then the two need not be the same.
    """
    schema = database.site.database
    names = [row[0] for row in database.query(f"SHOW TABLES FROM `{schema}`")]
    checksums, counts = ask(schema, names)
    before = fingerprints(database.query(checksums), database.query(counts))
    number = backup(ndb)
    folder = f"{DATA_DIRECTORY}/BACKUP/BACKUP-{number}"
    try:
        here = fingerprints(database.query(checksums), database.query(counts))
        if here != before:
            changed = sorted(name for name in names if here[name] != before[name])
            raise NotExercised(f"the site was written to during the backup, in {', '.join(changed)}")
        with empty_cluster(target, ndb, database) as scratch:
            scratch.query(f"CREATE DATABASE `{schema}`")
            for index, machine in enumerate(ndb.data):
                common = (
                    f"ndb_restore --ndb-connectstring={scratch.connect} --nodeid={ndb.node_id(machine)} "
                    f"--backupid={number} --backup-path={folder} --include-databases={schema}"
                )
                if index == 0:
                    target.shell.check(machine, f"{common} --restore-meta", timeout_s=300)
                target.shell.check(machine, f"{common} --restore-data", timeout_s=300)
            there = dict.fromkeys(names, MISSING) | copied(scratch, schema, names)
    finally:
        for machine in ndb.data:
            target.shell.check(machine, f"rm -rf {folder}")
    return {name: (here[name], there[name]) for name in names}
