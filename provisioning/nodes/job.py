"""What is asked of the process that prepares nodes, and what it answers."""

from pydantic import BaseModel, ConfigDict


class Node(BaseModel):
    """A machine to prepare."""

    model_config = ConfigDict(frozen=True)
    name: str
    address: str


class Job(BaseModel):
    """Everything that preparing Kubernetes nodes needs to know; holds no secret, only the key's path."""

    model_config = ConfigDict(frozen=True)
    apply: bool
    nodes: tuple[Node, ...]
    hosts: dict[str, str]
    user: str
    key: str
    known_hosts: str
    kubernetes_source: str
    kubernetes_key: str
    registry_mirror: str | None = None


class NodeAnswer(BaseModel):
    """What changed (or would change) on one node, and what failed there with its last output."""

    changes: list[str] = []
    failed: str | None = None
    output: str = ""


class Answer(BaseModel):
    """The answer for every node, by name."""

    nodes: dict[str, NodeAnswer]
