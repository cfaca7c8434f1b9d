"""The file server: one directory, exported by the kernel's server where it has one, by NFS-Ganesha where it has not."""

from collections.abc import Collection, Mapping

from pyinfra import host
from pyinfra.operations import files, server, systemd

from provisioning.nodes import facts
from provisioning.nodes.common import following, packages, put, render
from provisioning.nodes.job import Job, NfsJob, Node

# User 33 in Debian and in the WordPress image alike. The document gives the directory to nobody:nogroup, mode 755:
# then the image cannot copy itself there, nor anybody upload.
OWNER = "www-data"
GANESHA_CONFIG = "/etc/ganesha/ganesha.conf"


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
    options = exported_with(export)
    config = put("exports", "/etc/exports", render("exports.j2", export=export, options=options))
    systemd.service(name="nfs-server at boot", service="nfs-server", running=True, enabled=True)
    present = host.get_fact(facts.Exported)
    owed = exports_differ(present, {f"{export.directory} {export.clients}": set(options)})
    server.shell(name="exports read anew", commands=["exportfs -ra"], **following(config, owed=owed))


def exported_with(export: NfsJob) -> list[str]:
    """The options of the document's line in /etc/exports, and what the environment chose besides. Pure."""
    return ["rw", "sync", "no_subtree_check", "root_squash" if export.root_squash else "no_root_squash"]


def exports_differ(present: Mapping[str, Collection[str]], wanted: Mapping[str, Collection[str]]) -> bool:
    """Whether anything else than `wanted` is exported, or an option of it lacks; servers tell defaults too. Pure."""
    return present.keys() != wanted.keys() or any(set(wanted[one]) - set(present[one]) for one in wanted)


def ganesha(export: NfsJob) -> None:
    """The same export by a server that needs nothing of the kernel."""
    packages("the NFS server", ["nfs-ganesha", "nfs-ganesha-vfs", "rpcbind"])
    config = put("exports", GANESHA_CONFIG, render("ganesha.conf.j2", export=export))
    systemd.service(name="rpcbind at boot", service="rpcbind", running=True, enabled=True)
    systemd.service(name="nfs-ganesha at boot", service="nfs-ganesha", running=True, enabled=True)
    owed = host.get_fact(facts.StartedBefore, unit="nfs-ganesha", path=GANESHA_CONFIG)
    systemd.service(name="exports read anew", service="nfs-ganesha", restarted=True, **following(config, owed=owed))
