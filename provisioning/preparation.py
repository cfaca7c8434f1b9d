"""The action that gives machines the software of their roles, by the process `provisioning.nodes`."""

import base64
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import requests

from environments.model import AptSource, Environment, Machine, Nfs, Role
from provisioning.action import ActionFailed
from provisioning.ndb import DATA_DIRECTORY
from provisioning.nodes.job import Answer, HelmJob, Job, KubernetesJob, Member, NdbJob, NfsJob, Node, Source, TunnelJob
from provisioning.ssh import Shell

TIMEOUT_S = 1200


@dataclass(frozen=True)
class NodesPrepared:
    """Every machine has the packages, files and units of its role."""

    environment: Environment
    machines: tuple[Machine, ...]
    shell: Shell
    exist: bool
    name: str = "machines prepared"

    def pending(self) -> Sequence[str]:
        """A line for each operation and machine that would change something."""
        if not self.exist:
            return [f"prepare {machine.name}" for machine in self.machines]
        answer = self._run(apply=False)
        return [f"{name}: {change}" for name, node in answer.nodes.items() for change in node.changes]

    def apply(self) -> None:
        """Prepare all machines in parallel; raises ActionFailed with the first machine's failure."""
        self._run(apply=True)

    @cached_property
    def _kubernetes(self) -> KubernetesJob:
        return kubernetes_job(self.environment)

    @cached_property
    def _ndb(self) -> NdbJob:
        return ndb_job(self.environment)

    @cached_property
    def _helm(self) -> HelmJob:
        helm = self.environment.helm
        return HelmJob(
            source=apt_source("helm", helm.packages),
            machine=self.environment.kubernetes.control_plane_endpoint,
            repositories={name: str(url).rstrip("/") for name, url in helm.repositories.items()},
        )

    @cached_property
    def _tunnel(self) -> TunnelJob:
        return TunnelJob(source=apt_source("cloudflared", self.environment.edge.packages))

    def _run(self, *, apply: bool) -> Answer:
        job = Job(
            apply=apply,
            nodes=tuple(described(self.environment, machine) for machine in self.machines),
            user=self.environment.ssh.user,
            key=str(self.shell.key),
            known_hosts=str(self.shell.state.known_hosts),
            kubernetes=self._kubernetes,
            ndb=self._ndb,
            helm=self._helm,
            tunnel=self._tunnel,
            nfs=nfs_job(self.environment.nfs),
        )
        # The process ends when our end of this pipe does, even if we are killed.
        lifeline, ours = os.pipe()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "provisioning.nodes", str(lifeline)],
                input=job.model_dump_json(),
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
                pass_fds=[lifeline],
            )
        except subprocess.TimeoutExpired as error:
            raise ActionFailed(f"preparing the machines did not end within {TIMEOUT_S} s") from error
        finally:
            os.close(lifeline)
            os.close(ours)
        if done.returncode:
            raise ActionFailed("the process that prepares machines ended early", output=done.stdout + done.stderr)
        answer = Answer.model_validate_json(done.stdout.strip().splitlines()[-1])
        for name, node in answer.nodes.items():
            if node.failed:
                raise ActionFailed("preparing a machine failed", machine=name, command=node.failed, output=node.output)
        return answer


def described(environment: Environment, machine: Machine) -> Node:
    """What preparing `machine` needs to know of it. Pure."""
    hosts = {other.name: str(environment.reached_from(machine, other)) for other in environment.machines}
    return Node(name=machine.name, address=str(environment.address(machine)), role=machine.role, hosts=hosts)


def signing_key(url: str) -> str:
    """The key at `url`, armored; raises ActionFailed."""
    try:
        reply = requests.get(url, timeout=30)
        reply.raise_for_status()
    except requests.RequestException as error:
        raise ActionFailed(f"the key of an apt source cannot be read from {url}: {error}") from error
    return armored(reply.content)


def armored(key: bytes) -> str:
    """An OpenPGP key as text, whichever form it was published in (RFC 9580, section 6.2; the checksum is optional)."""
    begin, end = "-----BEGIN PGP PUBLIC KEY BLOCK-----", "-----END PGP PUBLIC KEY BLOCK-----"
    if key.lstrip().startswith(begin.encode()):
        return key.decode()
    lines = textwrap.wrap(base64.b64encode(key).decode(), 64)
    return "\n".join([begin, "", *lines, end, ""])


def apt_source(name: str, source: AptSource) -> Source:
    """An apt source with its key's text; raises ActionFailed when that cannot be had."""
    return Source(
        name=name,
        # A flat repository's address ends in a slash.
        url=str(source.url).rstrip("/") + "/",
        suite=source.suite,
        components=source.components,
        key=signing_key(str(source.key_url)),
    )


def nfs_job(nfs: Nfs) -> NfsJob:
    """What the file server needs to know. Pure."""
    return NfsJob(directory=nfs.export, clients=str(nfs.clients), root_squash=nfs.root_squash)


def kubernetes_job(environment: Environment) -> KubernetesJob:
    """What Kubernetes nodes need to know; raises ActionFailed when the packages' key cannot be had."""
    kubernetes = environment.kubernetes
    mirror = str(kubernetes.registry_mirror) if kubernetes.registry_mirror else None
    return KubernetesJob(source=apt_source("kubernetes", kubernetes.packages), registry_mirror=mirror)


def ndb_job(environment: Environment) -> NdbJob:
    """What the database's machines need to know; raises ActionFailed when the packages' key cannot be had."""
    ndb = environment.ndb
    management, data, sql = ndb_members(environment)
    return NdbJob(
        source=apt_source("mysql", ndb.packages),
        replicas=ndb.replicas,
        data_memory_mib=ndb.data_memory_mib,
        heartbeat_interval_ms=ndb.heartbeat_interval_ms,
        parameters=dict(ndb.parameters),
        default_storage_engine=ndb.default_storage_engine,
        data_directory=DATA_DIRECTORY,
        management=management,
        data=data,
        sql=sql,
    )


def ndb_members(environment: Environment) -> tuple[tuple[Member, ...], tuple[Member, ...], tuple[Member, ...]]:
    """Management, data and SQL nodes, numbered from 1 in that order, with their addresses in the data network. Pure."""
    groups = [environment.with_role(role) for role in (Role.NDB_MANAGEMENT, Role.NDB_DATA, Role.NDB_SQL)]
    centre = next(machine for group in groups for machine in group)
    numbers = iter(range(1, 256))
    management, data, sql = (
        tuple(
            Member(node_id=next(numbers), name=m.name, address=str(environment.reached_from(centre, m))) for m in group
        )
        for group in groups
    )
    return management, data, sql
