"""The site's schema and its user on the SQL node, as the document makes them; and root, who is root there only."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from environments.model import Environment, Machine, Role
from provisioning.action import ActionFailed
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.ssh import Result, Shell

READY_TIMEOUT_S = 120
PORT = 3306
REFUSED = "ERROR 1045"  # ER_ACCESS_DENIED_ERROR
# As root of the machine: by auth_socket where we built it; where others did, by what root's ~/.my.cnf says there.
CLIENT = "mysql --user=root --batch --skip-column-names"


def quoted(text: str) -> str:
    """A string literal of SQL. Pure."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def pattern(name: str) -> str:
    """A schema's name as GRANT takes it, where `_` and `%` would stand for others. Pure."""
    return "`" + re.sub(r"([_%\\])", r"\\\1", name).replace("`", "``") + "`"


@dataclass(frozen=True)
class Account:
    """A row of the server's accounts: who, from where, and how it is recognised."""

    user: str
    host: str
    plugin: str


class Database:
    """The SQL node of one environment, asked as its own root."""

    def __init__(self, environment: Environment, shell: Shell) -> None:
        self.site = environment.wordpress
        self.shell = shell
        self.machine: Machine = environment.with_role(Role.NDB_SQL)[0]
        site_network = environment.with_role(Role.WORKER)[0]
        self.address = environment.reached_from(site_network, self.machine)

    @property
    def account(self) -> str:
        """The site's account, as SQL writes it."""
        return f"{quoted(self.site.database_user)}@{quoted(self.site.database_clients)}"

    @property
    def grants(self) -> tuple[str, ...]:
        """What the account may do, exactly, as SHOW GRANTS words it with backticks taken away."""
        account = f"{self.site.database_user}@{self.site.database_clients}"
        schema = re.sub(r"([_%\\])", r"\\\1", self.site.database)
        return (f"GRANT USAGE ON *.* TO {account}", f"GRANT ALL PRIVILEGES ON {schema}.* TO {account}")

    def query(self, sql: str) -> list[tuple[str, ...]]:
        """Rows that `sql` gives, as text; it travels by standard input. Raises ActionFailed."""
        told = self.shell.check(self.machine, CLIENT, stdin=sql, timeout_s=60)
        return [tuple(line.split("\t")) for line in told.splitlines()]

    def accounts(self) -> list[Account]:
        """The accounts of root and of the site's user, from anywhere."""
        users = ", ".join(quoted(user) for user in ("root", self.site.database_user))
        return [
            Account(*row) for row in self.query(f"SELECT user, host, plugin FROM mysql.user WHERE user IN ({users})")
        ]

    def granted(self) -> tuple[str, ...]:
        """What the site's account may do, as SHOW GRANTS words it with backticks taken away."""
        return tuple(row[0].replace("`", "") for row in self.query(f"SHOW GRANTS FOR {self.account}"))

    def exists(self) -> bool:
        """Whether the site's schema is there."""
        name = quoted(self.site.database)
        return bool(self.query(f"SELECT 1 FROM information_schema.schemata WHERE schema_name = {name}"))

    def client(self, sql: str, *, machine: Machine, address: IPv4Address, password: str) -> Result:
        """Let the site's account do `sql` at `address`, called from `machine`; raises Unreachable.

        The password travels by standard input. An exit code other than 0 comes with MySQL's error in `stderr`.
        """
        value = password.replace("\\", "\\\\").replace('"', '\\"')
        options = f'[client]\nuser={self.site.database_user}\npassword="{value}"\n'
        command = (
            f"mysql --defaults-extra-file=/dev/stdin --host={address} --port={PORT} --batch --skip-column-names "
            f"--execute={shlex.quote(sql)}"
        )
        return self.shell.run(machine, command, stdin=options, timeout_s=60)

    def as_site(self, sql: str) -> list[tuple[str, ...]]:
        """Rows that `sql` gives the site's account in its own schema; raises ActionFailed."""
        statement = f"USE `{self.site.database}`; {sql}"
        password = self.site.database_password.reveal()
        done = self.client(statement, machine=self.machine, address=self.address, password=password)
        if done.exit_code:
            raise ActionFailed(
                f"the SQL node refuses the site's account: {done.stderr.strip()}",
                machine=self.machine.name,
                command=statement,
            )
        return [tuple(line.split("\t")) for line in done.stdout.splitlines()]

    def admits(self, password: str) -> bool:
        """Whether the site's account is let in with `password` from the SQL node's own address; raises ActionFailed."""
        done = self.client("SELECT 1", machine=self.machine, address=self.address, password=password)
        if done.exit_code and REFUSED not in done.stderr:
            raise ActionFailed(
                f"the SQL node does not let the site's account try its password: {done.stderr.strip()}",
                machine=self.machine.name,
            )
        return done.exit_code == 0

    def _unready(self) -> str:
        """What keeps the server from answering with its data nodes; empty when nothing does. Raises Unreachable."""
        done = self.shell.run(
            self.machine, CLIENT, stdin="SHOW STATUS LIKE 'Ndb_number_of_ready_data_nodes'", timeout_s=30
        )
        if done.exit_code:
            return done.stderr.strip()
        return "it has no data node yet" if done.stdout.split()[-1:] in ([], ["0"]) else ""

    def ready(self) -> bool:
        """Whether the server answers now, and has data nodes; raises Unreachable."""
        return not self._unready()

    def await_ready(self) -> None:
        """Wait until the server answers and has its data nodes; raises ActionFailed with the last state."""

        def answers() -> bool:
            if why := self._unready():
                raise NotYet(why)
            return True

        try:
            poll("the SQL node answers", answers, timeout_s=READY_TIMEOUT_S, interval_s=0.5)
        except DeadlineExceeded as error:
            raise ActionFailed(f"{error}; look at journalctl -u mysql there", machine=self.machine.name) from error


@dataclass(frozen=True)
class DatabaseDeclared:
    """The schema, the site's account with its password and these grants only, and root tied to the machine."""

    database: Database
    exist: bool
    name: str = "database and its user"

    def pending(self) -> Sequence[str]:
        """A line for each thing that differs; a password shows in none of them."""
        site, account = self.database.site, self.database.account
        if not self.exist or not self.database.ready():
            return [f"create the database {site.database}", f"create the user {account}"]
        accounts = self.database.accounts()
        roots = [found for found in accounts if found.user == "root"]
        lines = []
        if roots != [Account("root", "localhost", "auth_socket")]:
            lines.append("tie root to the machine's own root")
        if not self.database.exists():
            lines.append(f"create the database {site.database}")
        if not any((found.user, found.host) == (site.database_user, site.database_clients) for found in accounts):
            return [*lines, f"create the user {account}"]
        if not self.database.admits(site.database_password.reveal()):
            lines.append(f"set the password of {account}")
        if sorted(self.database.granted()) != sorted(self.database.grants):
            lines.append(f"grant {account} its schema and nothing else")
        return lines

    def apply(self) -> None:
        """Make it so; raises ActionFailed."""
        self.database.await_ready()
        site, account = self.database.site, self.database.account
        secret = site.database_password.reveal()
        password = quoted(secret)
        others = [
            f"DROP USER 'root'@{quoted(found.host)}"
            for found in self.database.accounts()
            if found.user == "root" and found.host != "localhost"
        ]
        statements = [
            *others,
            "ALTER USER 'root'@'localhost' IDENTIFIED WITH auth_socket",
            f"CREATE DATABASE IF NOT EXISTS `{site.database}` CHARACTER SET utf8mb4",
            f"CREATE USER IF NOT EXISTS {account} IDENTIFIED BY {password}",
            f"ALTER USER {account} IDENTIFIED BY {password}",
            f"REVOKE ALL PRIVILEGES, GRANT OPTION FROM {account}",
            f"GRANT ALL PRIVILEGES ON {pattern(site.database)}.* TO {account}",
        ]
        try:
            self.database.query(";\n".join(statements) + ";\n")
        except ActionFailed as error:
            # The server quotes what it stumbled over.
            error.output = error.output.replace(password, "***").replace(secret, "***")
            raise
