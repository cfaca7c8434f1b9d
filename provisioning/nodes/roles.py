"""What a machine's software is, by its role."""

from collections.abc import Callable

from environments.model import Role
from provisioning.nodes import common, kubernetes, ndb, nfs, tunnel
from provisioning.nodes.job import Job, Node

Prepare = Callable[[Job, Node], None]
PREPARATIONS: dict[Role, Prepare] = {
    Role.CONTROL_PLANE: kubernetes.prepare,
    Role.WORKER: kubernetes.prepare,
    Role.NDB_MANAGEMENT: ndb.prepare_management,
    Role.NDB_DATA: ndb.prepare_data,
    Role.NDB_SQL: ndb.prepare_sql,
    Role.NFS: nfs.prepare,
    Role.TUNNEL: tunnel.prepare,
}


def prepare(job: Job, node: Node) -> None:
    """Plan the operations of one machine: what all have, then what its role asks for."""
    common.prepare(node)
    PREPARATIONS[node.role](job, node)
