"""The connector's machine: the package and its unit. The token comes later, from `provisioning.edge`, not in a job."""

from pyinfra import host
from pyinfra.operations import files, systemd

from provisioning.nodes import facts
from provisioning.nodes.common import following, packages, put, render, source
from provisioning.nodes.job import Job, Node
from provisioning.tunnel import CREDENTIALS, UNIT


def prepare(job: Job, node: Node) -> None:
    """The connector, ready to start with a token; called with pyinfra's host in context."""
    source("cloudflared", job.tunnel.source, "cloudflared")
    packages("the connector", ["cloudflared"], listed=True)
    files.directory(name="the connector's settings", path="/etc/cloudflared", mode="700", user="root", group="root")
    path = f"/etc/systemd/system/{UNIT}.service"
    unit = put("unit of the connector", path, render("cloudflared.service.j2", credentials=CREDENTIALS))
    systemd.service(name="connector at boot", service=UNIT, enabled=True, running=None)
    owed = host.get_fact(facts.UnitOutdated, unit=UNIT) or host.get_fact(facts.StartedBefore, unit=UNIT, path=path)
    systemd.service(
        name="connector's unit read anew",
        service=UNIT,
        restarted=True,
        daemon_reload=True,
        **following(unit, owed=owed),
    )
