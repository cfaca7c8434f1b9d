"""What is asked of the process that prepares machines, and what it answers."""

from pydantic import BaseModel, ConfigDict

from environments.model import Role


class Question(BaseModel):
    """A part of the job; holds no secret, only paths of them."""

    model_config = ConfigDict(frozen=True)


class Node(Question):
    """A machine to prepare; `hosts` is every machine's address as this one reaches it, by name."""

    name: str
    address: str
    role: Role
    hosts: dict[str, str]


class Source(Question):
    """An apt source: the name of its files on the machine, and `key`, the armored text that signs it."""

    name: str
    url: str
    suite: str
    components: tuple[str, ...]
    key: str


class KubernetesJob(Question):
    """What Kubernetes nodes need to know."""

    source: Source
    registry_mirror: str | None


class Member(Question):
    """One process of an NDB cluster: its node id, and the address that the others reach it at."""

    node_id: int
    name: str
    address: str


class NdbJob(Question):
    """What the database's machines need to know; sizes in MiB, times in milliseconds."""

    source: Source
    replicas: int
    data_memory_mib: int
    heartbeat_interval_ms: int
    parameters: dict[str, str]
    default_storage_engine: str
    data_directory: str
    management: tuple[Member, ...]
    data: tuple[Member, ...]
    sql: tuple[Member, ...]


class NfsJob(Question):
    """What the file server needs to know."""

    directory: str
    clients: str
    root_squash: bool


class HelmJob(Question):
    """What the machine with Helm needs to know: which one it is, and the chart repositories by name."""

    source: Source
    machine: str
    repositories: dict[str, str]


class TunnelJob(Question):
    """What the connector's machine needs to know."""

    source: Source


class Job(Question):
    """Everything that preparing machines needs to know."""

    apply: bool
    nodes: tuple[Node, ...]
    user: str
    key: str
    known_hosts: str
    kubernetes: KubernetesJob
    ndb: NdbJob
    nfs: NfsJob
    helm: HelmJob
    tunnel: TunnelJob


class NodeAnswer(BaseModel):
    """What changed (or would change) on one machine, and what failed there with its last output."""

    changes: list[str] = []
    failed: str | None = None
    output: str = ""


class Answer(BaseModel):
    """The answer for every machine, by name."""

    nodes: dict[str, NodeAnswer]
