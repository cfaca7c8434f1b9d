"""The NDB cluster on its machines: what its members say of themselves, and the order in which they start."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from environments.model import Environment, Machine, Role
from provisioning.action import ActionFailed
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.ssh import Shell, Unreachable

# A first start formats the redo logs; a restart reads everything that was written since the last checkpoint.
START_TIMEOUT_S = 600
SHOW_TIMEOUT_S = 10
RESTARTS_MAX = 5
UNITS = {Role.NDB_MANAGEMENT: "ndb_mgmd", Role.NDB_DATA: "ndbmtd", Role.NDB_SQL: "mysql"}
DATA_DIRECTORY = "/var/lib/mysql-cluster"
SECTION = re.compile(r"^\[(?P<program>\w+)\(\w+\)\]")
MEMBER = re.compile(
    r"^id=(?P<id>\d+)\s+(?:@(?P<address>\S+)\s+\((?P<told>.*)\)|"
    r"\(not connected(?:, accepting connect from (?P<accepted>.*))?\))\s*$"
)
# What `show` calls a member's program.
PROGRAMS = {Role.NDB_MANAGEMENT: "ndb_mgmd", Role.NDB_DATA: "ndbd", Role.NDB_SQL: "mysqld"}


@dataclass(frozen=True)
class MemberState:
    """What the management server tells of a member: `group` is a started data node's node group.

    `host` is where it is connected from, or where it may connect from.
    """

    address: str | None
    starting: bool
    group: int | None
    program: str = ""
    host: str = ""

    @property
    def connected(self) -> bool:
        """Whether it takes part; a starting data node does not yet."""
        return self.address is not None and not self.starting


def parse_show(text: str) -> dict[int, MemberState]:
    """What `ndb_mgm -e show` prints, by node id. Pure."""
    found = {}
    program = ""
    for line in text.splitlines():
        if section := SECTION.match(line.strip()):
            program = section["program"]
        if match := MEMBER.match(line.strip()):
            told = match["told"] or ""
            group = re.search(r"Nodegroup: (\d+)", told)
            found[int(match["id"])] = MemberState(
                match["address"],
                "starting" in told or "no nodegroup" in told,
                int(group[1]) if group else None,
                program,
                match["address"] or match["accepted"] or "",
            )
    return found


def number_in(states: Mapping[int, MemberState], machine: Machine) -> int | None:
    """A machine's node id, by its program and its name or addresses; none where the server tells of none. Pure."""
    own = {machine.name, *map(str, machine.addresses.values())}
    program = PROGRAMS[machine.role]
    return next((id_ for id_, state in sorted(states.items()) if state.program == program and state.host in own), None)


class Running(StrEnum):
    """Whether a member's program runs, and with which configuration."""

    STOPPED = "start"
    OUTDATED = "restart, for its configuration changed,"
    CURRENT = "current"


class Ndb:
    """The members of one environment's cluster."""

    def __init__(self, environment: Environment, shell: Shell) -> None:
        self.environment = environment
        self.shell = shell
        self.management = environment.with_role(Role.NDB_MANAGEMENT)
        self.data = environment.with_role(Role.NDB_DATA)
        self.sql = environment.with_role(Role.NDB_SQL)

    @property
    def members(self) -> tuple[Machine, ...]:
        """Every member, in the order that they start in."""
        return (*self.management, *self.data, *self.sql)

    @cached_property
    def _told(self) -> dict[int, MemberState]:
        """What `show` told once: numbers do not change while a cluster runs."""
        return self.show()

    def node_id(self, machine: Machine, states: Mapping[int, MemberState] | None = None) -> int:
        """The member's number in the cluster, by its address in `states`, or in what `show` tells; else as we number.

        A cluster that others made may be numbered otherwise than by `provisioning.preparation.ndb_members`. Raises
        ActionFailed where the management server does not answer.
        """
        found = number_in(self._told if states is None else states, machine)
        return self.members.index(machine) + 1 if found is None else found

    def show(self) -> dict[int, MemberState]:
        """What the management server tells, by node id; raises ActionFailed when it does not answer."""
        # It waits without end for a management server that goes while it is being asked.
        script = (
            f"timeout -s KILL {SHOW_TIMEOUT_S} "
            "ndb_mgm --ndb-connectstring=localhost --connect-retries=1 --connect-retry-delay=1 -e show"
        )
        return parse_show(self.shell.check(self.management[0], script, timeout_s=30))

    def running(self, machine: Machine) -> Running:
        """Compares what the member's process was started with to its unit; raises ActionFailed."""
        unit = UNITS[machine.role]
        script = (
            f"systemctl show -p Environment --value {unit}; pid=$(systemctl show -p MainPID --value {unit}); "
            "test $pid = 0 || tr '\\0' '\\n' < /proc/$pid/environ | grep ^HAPROOF_CONFIG= || true"
        )
        match self.shell.check(machine, script, timeout_s=30).split():
            case [declared, actual]:
                return Running.CURRENT if actual == declared else Running.OUTDATED
        return Running.STOPPED

    def restart(self, machine: Machine) -> None:
        """Start a member, or start it again; returns when systemd has."""
        self.shell.check(machine, f"systemctl restart {UNITS[machine.role]}", timeout_s=120)

    def stop(self, machine: Machine) -> None:
        """Stop a member in good order; raises ActionFailed."""
        self.shell.check(machine, f"systemctl stop {UNITS[machine.role]}", timeout_s=120)

    def await_members(self, machines: Sequence[Machine]) -> None:
        """Wait until `machines` take part; raises ActionFailed naming who does not, with its log's last lines.

        At once, where a member's program ends as often as it is started.
        """
        before = {machine: self._restarts(machine) for machine in machines}

        def joined() -> bool:
            try:
                states = self.show()
            except Unreachable:
                raise
            except ActionFailed as error:
                raise NotYet(f"the management server does not answer: {error.cause}") from error
            away = [machine for machine in machines if not taking_part(states, self.node_id(machine, states))]
            for machine in away:
                if self._restarts(machine) - before[machine] >= RESTARTS_MAX:
                    raise self._failure(machine, f"the unit {UNITS[machine.role]} ends as often as it is started")
            if away:
                raise NotYet(f"{', '.join(machine.name for machine in away)} not connected")
            return True

        try:
            poll("members of the NDB cluster", joined, timeout_s=START_TIMEOUT_S, interval_s=0.5)
        except DeadlineExceeded as error:
            machine = next((m for m in machines if m.name in error.last_state), machines[0])
            raise self._failure(machine, str(error)) from error

    def _restarts(self, machine: Machine) -> int:
        """How often systemd has started the member again by itself."""
        return int(
            self.shell.check(machine, f"systemctl show -p NRestarts --value {UNITS[machine.role]}", timeout_s=30)
        )

    def _failure(self, machine: Machine, cause: str) -> ActionFailed:
        log = f"journalctl -u {UNITS[machine.role]} -n 20 --no-pager -o cat"
        output = self.shell.run(machine, log, timeout_s=30).stdout
        return ActionFailed(cause, machine=machine.name, command=log, output=output)


def taking_part(states: Mapping[int, MemberState], node_id: int) -> bool:
    """Whether a member is connected and started. Pure."""
    return node_id in states and states[node_id].connected


@dataclass(frozen=True)
class NdbStarted:
    """Every member runs with the configuration as it is now: management, then data, then SQL nodes."""

    ndb: Ndb
    exist: bool
    name: str = "NDB cluster started"

    def _behind(self) -> dict[Machine, Running]:
        states = {machine: self.ndb.running(machine) for machine in self.ndb.members}
        return {machine: state for machine, state in states.items() if state is not Running.CURRENT}

    def _away(self) -> list[Machine]:
        try:
            states = self.ndb.show()
        except Unreachable:
            raise
        except ActionFailed:
            return list(self.ndb.members)
        members = self.ndb.members
        return [machine for machine in members if not taking_part(states, self.ndb.node_id(machine, states))]

    def pending(self) -> Sequence[str]:
        """A line for each member that is not up with its configuration."""
        if not self.exist:
            return [f"start {machine.name}" for machine in self.ndb.members]
        behind = self._behind()
        waiting = [] if behind else [f"wait for {machine.name}" for machine in self._away()]
        return [f"{state} {machine.name}" for machine, state in behind.items()] + waiting

    def apply(self) -> None:
        """Start what is stopped, all data nodes at once; restart one at a time what runs with an old configuration.

        Raises ActionFailed naming the member that did not come.
        """
        behind = self._behind()
        for machine in self.ndb.management:
            if machine in behind:
                self.ndb.restart(machine)
        stopped = [m for m in self.ndb.data if behind.get(m) is Running.STOPPED]
        for machine in stopped:
            self.ndb.restart(machine)
        # Data nodes wait for each other at a first start, and one alone must not be restarted as well.
        self.ndb.await_members(self.ndb.data)
        for machine in self.ndb.data:
            if behind.get(machine) is Running.OUTDATED:
                self.ndb.restart(machine)
                self.ndb.await_members(self.ndb.data)
        for machine in self.ndb.sql:
            if machine in behind:
                self.ndb.restart(machine)
        self.ndb.await_members(self.ndb.members)
