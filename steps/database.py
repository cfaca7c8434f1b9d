"""The database: its members, where the site's tables are kept, what survives, and whom it lets in."""

import secrets
import time
from collections.abc import Iterator, Mapping

import pytest
from pytest_bdd import given, then, when

from environments.model import Environment, Machine
from provisioning.action import ActionFailed
from provisioning.database import REFUSED, Account, Database
from provisioning.ndb import MemberState, Ndb, taking_part
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.session import Session
from provisioning.ssh import Result
from steps.backup import restored
from steps.complaints import none_of, unless
from steps.power import Power

RETURN_TIMEOUT_S = 180
# ER_ACCESS_DENIED_ERROR: known here under no such name; ER_HOST_NOT_PRIVILEGED: not known here under any name.
TURNED_AWAY = (REFUSED, "ERROR 1130")
# Where a write is lost with all data nodes at once: the time from one global checkpoint to the next, and its writing.
CHECKPOINTS = 2


@pytest.fixture
def ndb(target: Session) -> Ndb:
    """The members of the target's database cluster."""
    return target.ndb


@pytest.fixture
def database(target: Session) -> Database:
    """The target's SQL node."""
    return target.database


@pytest.fixture
def table(database: Database) -> Iterator[str]:
    """By the site's own account, as a plugin would; dropped at the end."""
    name = f"haproof_{secrets.token_hex(4)}"
    database.as_site(f"CREATE TABLE {name} (id INT PRIMARY KEY, said VARCHAR(64))")
    yield name
    database.await_ready()
    database.as_site(f"DROP TABLE {name}")


@given("a table that the site makes without naming an engine")
def site_table(table: str) -> None:
    """See `table`."""


@when("the management node is asked for the members", target_fixture="members")
def ask_for_members(ndb: Ndb) -> Mapping[int, MemberState]:
    """By its own client."""
    return ndb.show()


@then("every declared member is connected")
def all_connected(ndb: Ndb, members: Mapping[int, MemberState]) -> None:
    """At one of its declared addresses."""

    def complaints(machine: Machine) -> list[str]:
        node = ndb.node_id(machine, members)
        state = members.get(node)
        if state is None or not taking_part(members, node):
            return [f"expected node {node} connected, found {state}"]
        declared = {str(address) for address in machine.addresses.values()}
        return unless(state.address in declared, f"expected node {node} at {declared}, found it at {state.address}")

    none_of({machine.name: complaints(machine) for machine in ndb.members})


@then("as many data nodes as there are replicas form each node group")
def node_groups(ndb: Ndb, members: Mapping[int, MemberState], environment: Environment) -> None:
    """By the node groups that the data nodes are in."""
    groups: dict[int | None, list[str]] = {}
    for machine in ndb.data:
        state = members.get(ndb.node_id(machine, members))
        groups.setdefault(state.group if state else None, []).append(machine.name)
    wanted = environment.ndb.replicas
    none_of(
        {
            f"node group {group}": [
                *unless(group is not None, f"expected a node group for {', '.join(names)}, found none"),
                *unless(len(names) == wanted, f"expected {wanted} data nodes, found {', '.join(names)}"),
            ]
            for group, names in groups.items()
        }
    )


@then("all data nodes run with one generation of the configuration")
def one_generation(ndb: Ndb, database: Database) -> None:
    """By what each data node tells of itself."""
    rows = database.query("SELECT node_id, config_generation FROM ndbinfo.nodes")
    found = {int(node): generation for node, generation in rows}
    generations = {machine.name: found.get(ndb.node_id(machine)) for machine in ndb.data}
    first = next(iter(generations.values()))
    none_of(
        {
            name: unless(generation is not None and generation == first, f"expected {first}, found {generation}")
            for name, generation in generations.items()
        }
    )


def settings(database: Database, name: str) -> dict[int, int]:
    """What each data node runs with for the parameter `name`, by node id; raises ActionFailed."""
    rows = database.query(
        "SELECT v.node_id, v.config_value FROM ndbinfo.config_values v JOIN ndbinfo.config_params p "
        f"ON v.config_param = p.param_number WHERE p.param_name = '{name}'"
    )
    return {int(node): int(value) for node, value in rows}


@then("all data nodes watch each other at the declared interval")
def heartbeats(ndb: Ndb, database: Database, environment: Environment) -> None:
    """As they run; one that says nothing for four intervals is taken for dead (NDB's manual, HeartbeatIntervalDbDb)."""
    found, wanted = settings(database, "HeartbeatIntervalDbDb"), environment.ndb.heartbeat_interval_ms
    none_of(
        {
            machine.name: unless(
                found.get(ndb.node_id(machine)) == wanted,
                f"expected a heartbeat every {wanted} ms, found {found.get(ndb.node_id(machine))}",
            )
            for machine in ndb.data
        }
    )


@then("none of them is a node of the Kubernetes cluster")
def outside_of_kubernetes(machines: tuple[Machine, ...], target: Session) -> None:
    """By name and by address."""
    nodes = target.cluster.core.list_node(_request_timeout=30).items
    taken = {address.address for node in nodes for address in node.status.addresses or []}
    taken |= {node.metadata.name for node in nodes}
    none_of(
        {
            machine.name: [
                f"expected it outside of Kubernetes, and a node has its {what}"
                for what in (machine.name, *map(str, machine.addresses.values()))
                if what in taken
            ]
            for machine in machines
        }
    )


def engines(database: Database, table: str = "%") -> dict[str, str]:
    """The engine of each of the site's tables whose name is like `table`."""
    schema = database.site.database
    rows = database.as_site(
        "SELECT table_name, engine FROM information_schema.tables "
        f"WHERE table_schema = '{schema}' AND table_type = 'BASE TABLE' AND table_name LIKE '{table}'"
    )
    return {str(row[0]): str(row[1]) for row in rows}


def not_replicated(found: Mapping[str, str]) -> dict[str, list[str]]:
    """Complaints of tables that another engine than the cluster's keeps. Pure."""
    return {
        name: unless(engine.lower() == "ndbcluster", f"expected it in the NDB cluster, found it in {engine}")
        for name, engine in found.items()
    }


@then("every table of the site is kept by the data nodes")
def all_tables_replicated(database: Database) -> None:
    """Every one, a plugin's too."""
    none_of(not_replicated(engines(database)))


@then("that table is kept by the data nodes")
def that_table_replicated(table: str, database: Database) -> None:
    """The one that named no engine."""
    none_of(not_replicated(engines(database, table)))


@given("a row of the site that is older than the last global checkpoint", target_fixture="row")
def checkpointed_row(table: str, database: Database) -> tuple[str, ...]:
    """What is younger may be lost with all data nodes at once, as the vendor says; asked of the live configuration."""
    row = ("1", secrets.token_hex(8))
    database.as_site(f"INSERT INTO {table} VALUES ({row[0]}, '{row[1]}')")
    written_s = time.monotonic()
    window_s = CHECKPOINTS * max(settings(database, "TimeBetweenGlobalCheckpoints").values()) / 1000
    poll("the next global checkpoints", lambda: time.monotonic() - written_s > window_s, timeout_s=window_s + 10)
    return row


@when("a row is written to it, and each data node in turn is stopped meanwhile", target_fixture="readings")
def stop_each_in_turn(table: str, ndb: Ndb, database: Database) -> dict[str, tuple[list[str], list[str]]]:
    """For each data node: what was written before it was stopped, and what was read while it was."""
    readings = {}
    for number, machine in enumerate(ndb.data):
        said = secrets.token_hex(8)
        try:
            database.as_site(f"INSERT INTO {table} VALUES ({number}, '{said}')")
            ndb.stop(machine)
            rows = database.as_site(f"SELECT said FROM {table} WHERE id = {number}")
        except ActionFailed as error:
            rows = [(f"nothing: {error.cause}",)]
        finally:
            ndb.restart(machine)
            ndb.await_members(ndb.members)
        readings[machine.name] = ([said], [row[0] for row in rows])
    return readings


@then("the row was read back with every one of them stopped")
def read_back(readings: Mapping[str, tuple[list[str], list[str]]]) -> None:
    """As it was written."""
    none_of(
        {
            f"without {name}": unless(written == read, f"expected {written}, read {read}")
            for name, (written, read) in readings.items()
        }
    )


@when("all of these lose their power and get it back")
def cold_start(machines: tuple[Machine, ...], power: Power) -> None:
    """All are off before the first is on again."""
    power.cut(machines)
    power.give()


@then("every member of the database takes part again")
def members_return(ndb: Ndb, database: Database) -> None:
    """By themselves, and the SQL node answers."""

    def back() -> bool:
        try:
            states = ndb.show()
            database.as_site("SELECT 1")
        except ActionFailed as error:
            raise NotYet(error.cause) from error
        if away := [machine.name for machine in ndb.members if not taking_part(states, ndb.node_id(machine, states))]:
            raise NotYet(f"{', '.join(away)} not connected")
        return True

    try:
        poll("members of the database", back, timeout_s=RETURN_TIMEOUT_S, interval_s=1)
    except DeadlineExceeded as error:
        raise AssertionError(
            f"expected every member back within {RETURN_TIMEOUT_S} s, found {error.last_state}"
        ) from error


@then("the row is still there")
def row_is_there(table: str, row: tuple[str, ...], database: Database) -> None:
    """As it was written."""
    try:
        found = database.as_site(f"SELECT id, said FROM {table}")
    except ActionFailed as error:
        raise AssertionError(f"expected {row}, found {error.cause}") from error
    assert found == [row], f"expected {row}, found {found}"


@when("a backup is taken and restored into an empty cluster", target_fixture="copies")
def back_up(target: Session, ndb: Ndb, database: Database) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """For each table of the site: its rows and checksum here, and in the restored copy."""
    return restored(target, ndb, database)


@then("all tables of the site have the same rows and checksums there")
def same_tables(copies: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]) -> None:
    """Table by table."""
    none_of(
        {
            name: unless(here == there, f"expected (rows, checksum) {here}, found {there} in the restored copy")
            for name, (here, there) in copies.items()
        }
    )


@then("the site's user has exactly the grants on its own schema")
def exact_grants(database: Database) -> None:
    """By what the server tells; USAGE is the right to log in."""
    found, wanted = sorted(database.granted()), sorted(database.grants)
    assert found == wanted, f"expected {wanted}, found {found}"


@then("the site's user is declared for the cluster's network and for nowhere else")
def one_account(database: Database) -> None:
    """By the server's accounts."""
    hosts = [found.host for found in database.accounts() if found.user == database.site.database_user]
    wanted = [database.site.database_clients]
    assert hosts == wanted, f"expected the user from {wanted}, found it from {hosts}"


@then("the database's root can log in from the SQL node itself only")
def root_is_local(database: Database) -> None:
    """By the server's accounts: only from there, and only as that machine's root."""
    found = [account for account in database.accounts() if account.user == "root"]
    wanted = [Account("root", "localhost", "auth_socket")]
    assert found == wanted, f"expected {wanted}, found {found}"


@when("the site's user logs in from the cluster's network", target_fixture="login")
def log_in_inside(database: Database) -> Result:
    """With its password, from the SQL node's own address there."""
    password = database.site.database_password.reveal()
    return database.client("SELECT 1", machine=database.machine, address=database.address, password=password)


@when("the site's user logs in from the database's network", target_fixture="login")
def log_in_outside(database: Database, ndb: Ndb, environment: Environment) -> Result:
    """With its password, from the management node."""
    caller = ndb.management[0]
    address = environment.reached_from(caller, database.machine)
    return database.client(
        "SELECT 1", machine=caller, address=address, password=database.site.database_password.reveal()
    )


@then("it is let in")
def let_in(login: Result) -> None:
    """And may ask something."""
    assert login.exit_code == 0, f"expected the user to be let in, found {login.stderr.strip()}"


@then("it is turned away")
def turned_away(login: Result) -> None:
    """By the server, for where it comes from; another failure would say nothing about that."""
    refused = login.exit_code != 0 and any(code in login.stderr for code in TURNED_AWAY)
    assert refused, f"expected the server to refuse the user, found {login.stdout.strip() or login.stderr.strip()}"
