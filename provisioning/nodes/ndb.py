"""What the database's machines must be before the cluster starts: programs, configuration, units enabled at boot.

Nothing is started here: starting has an order over machines (see `provisioning.ndb`).
"""

import hashlib

from pyinfra.operations import files, systemd

from provisioning.nodes.common import of_unit, packages, put, render, source
from provisioning.nodes.job import Job, NdbJob, Node

CONFIG = "/etc/mysql/ndb-config.ini"
SQL_CONFIG = "/etc/mysql/haproof.cnf"
# Named as MySQL's own apt repository names them.
MANAGEMENT_PACKAGES = ["mysql-cluster-community-management-server", "mysql-cluster-community-client"]
DATA_PACKAGES = ["mysql-cluster-community-data-node", "mysql-cluster-community-client"]
SQL_PACKAGES = ["mysql-cluster-community-server", "mysql-cluster-community-client"]


def prepare_management(job: Job, node: Node) -> None:
    """The management server with the cluster's configuration, the only copy of it."""
    config = render("ndb-config.ini.j2", ndb=job.ndb)
    install(job.ndb, MANAGEMENT_PACKAGES)
    put("the cluster's configuration", CONFIG, config)
    unit("ndb_mgmd", render("ndb_mgmd.service.j2", config=CONFIG, digest=digest(config), **common(job, node)))


def prepare_data(job: Job, node: Node) -> None:
    """A data node; what it is told at its start is the management server's configuration."""
    config = render("ndb-config.ini.j2", ndb=job.ndb)
    install(job.ndb, DATA_PACKAGES)
    unit("ndbmtd", render("ndbmtd.service.j2", digest=digest(config), **common(job, node)))


def prepare_sql(job: Job, node: Node) -> None:
    """The SQL node; its unit has the name of the package's, which it replaces."""
    config = render("my.cnf.j2", **common(job, node))
    install(job.ndb, SQL_PACKAGES)
    files.directory(name="the SQL node's data", path="/var/lib/mysql", user="mysql", group="mysql", mode="750")
    put("the SQL node's configuration", SQL_CONFIG, config)
    unit("mysql", render("mysql.service.j2", config=SQL_CONFIG, digest=digest(config), **common(job, node)))


def digest(text: str) -> str:
    """What a unit carries of the configuration that its program is to run with."""
    return hashlib.sha256(text.encode()).hexdigest()


def common(job: Job, node: Node) -> dict[str, object]:
    """What the templates of every kind of member need."""
    members = (*job.ndb.management, *job.ndb.data, *job.ndb.sql)
    return {
        "ndb": job.ndb,
        "member": next(member for member in members if member.name == node.name),
        "connect": ",".join(member.address for member in job.ndb.management),
    }


def install(job: NdbJob, wanted: list[str]) -> None:
    """The packages, and the directory that holds data and logs."""
    source("MySQL", job.source, wanted[0])
    packages("MySQL packages", wanted, listed=True)
    files.directory(name="the data directory", path=job.data_directory, user="mysql", group="mysql", mode="750")


def unit(name: str, text: str) -> None:
    """A systemd unit of ours, enabled at boot."""
    of_unit(f"unit {name}", f"/etc/systemd/system/{name}.service", text, unit=name)
    systemd.service(name=f"{name} at boot", service=name, running=None, enabled=True)
