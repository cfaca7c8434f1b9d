"""The file server: one directory, exported by the kernel's server where it has one, by NFS-Ganesha where it has not."""

from pyinfra import host
from pyinfra.operations import files, server, systemd

from provisioning.nodes import facts
from provisioning.nodes.common import packages, put, render
from provisioning.nodes.job import Job, NfsJob, Node

# User 33 in Debian and in the WordPress image alike. The document gives the directory to nobody:nogroup, mode 755:
# then the image cannot copy itself there, nor anybody upload.
OWNER = "www-data"


def prepare(job: Job, node: Node) -> None:
    """The directory and its export; called with pyinfra's host in context."""
    export = job.nfs
    files.directory(name="the exported directory", path=export.directory, user=OWNER, group=OWNER, mode="755")
    if host.get_fact(facts.KernelServesNfs):
        kernel(export)
    else:
        ganesha(export)


def kernel(export: NfsJob) -> None:
    """The document's own way."""
    packages("the NFS server", ["nfs-kernel-server"])
    config = put("exports", "/etc/exports", render("exports.j2", export=export))
    systemd.service(name="nfs-server at boot", service="nfs-server", running=True, enabled=True)
    server.shell(name="exports read anew", commands=["exportfs -ra"], _if=config.did_change)


def ganesha(export: NfsJob) -> None:
    """The same export by a server that needs nothing of the kernel."""
    packages("the NFS server", ["nfs-ganesha", "nfs-ganesha-vfs", "rpcbind"])
    config = put("exports", "/etc/ganesha/ganesha.conf", render("ganesha.conf.j2", export=export))
    systemd.service(name="rpcbind at boot", service="rpcbind", running=True, enabled=True)
    systemd.service(name="nfs-ganesha at boot", service="nfs-ganesha", running=True, enabled=True)
    systemd.service(name="exports read anew", service="nfs-ganesha", restarted=True, _if=config.did_change)
