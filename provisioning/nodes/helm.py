"""Helm on the first master, as the document installs it; no chart is used."""

from pyinfra import host
from pyinfra.operations import server

from provisioning.nodes import facts
from provisioning.nodes.common import PATIENCE, packages, source
from provisioning.nodes.job import Job, Node


def prepare(job: Job, node: Node) -> None:
    """The program and the repositories; called with pyinfra's host in context."""
    if node.name != job.helm.machine:
        return
    source("Helm", job.helm.source, "helm")
    packages("Helm", ["helm"], listed=True)
    known = host.get_fact(facts.ChartRepositories)
    for name, url in job.helm.repositories.items():
        if known.get(name) != url:
            command = f"helm repo add --force-update {name} {url}"
            server.shell(name=f"chart repository {name}", commands=[command], **PATIENCE)
