"""What machines are given: facts as their commands tell them, and the operations that follow; without a machine."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

from environments.load import find, load
from environments.model import Environment, Role
from provisioning.nodes import common, facts, kubernetes, ndb, nfs, tunnel
from provisioning.nodes.job import HelmJob, Job, KubernetesJob, NdbJob, NfsJob, Source, TunnelJob
from provisioning.nodes.roles import PREPARATIONS
from provisioning.preparation import described, ndb_members, nfs_job
from provisioning.tunnel import UNIT

SOURCE = Source(name="any", url="http://192.0.2.1/", suite="/", components=(), key="")


@pytest.fixture
def environment() -> Environment:
    return load(find("lab"))


@pytest.fixture
def job(environment: Environment) -> Job:
    """The lab's machines, whose packages come from nowhere."""
    management, data, sql = ndb_members(environment)
    settings = environment.ndb.model_dump(include={"replicas", "data_memory_mib", "heartbeat_interval_ms"})
    return Job(
        apply=True,
        nodes=tuple(described(environment, machine) for machine in environment.machines),
        user="debian",
        key="/key",
        known_hosts="/known_hosts",
        kubernetes=KubernetesJob(source=SOURCE, registry_mirror=None),
        ndb=NdbJob(
            source=SOURCE,
            parameters={},
            default_storage_engine="ndbcluster",
            data_directory="/data",
            management=management,
            data=data,
            sql=sql,
            **settings,
        ),
        nfs=nfs_job(environment.nfs),
        helm=HelmJob(source=SOURCE, machine="srvk8s-master01", repositories={}),
        tunnel=TunnelJob(source=SOURCE),
    )


# -- facts


@pytest.fixture
def systemctl(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """A systemctl that knows one unit: what it is asked for, and what it answers."""

    def write(*, active: bool = True, shown: str = "") -> dict[str, str]:
        program = tmp_path / "systemctl"
        program.write_text(
            f"""#!/bin/sh
            case "$*" in
                is-active*) exit {0 if active else 3} ;;
                *ExecMainStartTimestamp*--timestamp=us+utc* | *--timestamp=us+utc*ExecMainStartTimestamp*) ;;
                *Timestamp*) echo "not to the microsecond" && exit ;;
            esac
            echo "{shown}"
            """
        )
        program.chmod(0o755)
        return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    return write


def told(command: str, env: dict[str, str]) -> list[str]:
    """What a fact's command prints; it must end well, as pyinfra wants it."""
    return subprocess.run(["sh", "-c", command], env=env, capture_output=True, text=True, check=True).stdout.split("\n")


# The file is of 12:00:00.5 on a day of long ago.
@pytest.mark.parametrize(
    ("active", "started", "before"),
    [
        (True, "Wed 2020-01-01 12:00:00.499999 UTC", True),
        (True, "Wed 2020-01-01 12:00:00.500001 UTC", False),
        (True, "Wed 2020-01-01 13:00:00.000000 UTC", False),
        (False, "Wed 2020-01-01 11:00:00.000000 UTC", False),
    ],
)
def test_a_program_that_was_started_before_its_file_was_written_is_known(
    systemctl: Callable[..., dict[str, str]], tmp_path: Path, active: bool, started: str, before: bool
) -> None:
    file = tmp_path / "config"
    file.touch()
    os.utime(file, ns=(1577880000_500000000, 1577880000_500000000))
    fact = facts.StartedBefore()
    lines = told(fact.command("containerd", str(file)), systemctl(active=active, shown=started))
    assert fact.process(lines) is before


def test_a_file_that_is_not_there_yet_is_no_reason_to_restart(
    systemctl: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    fact = facts.StartedBefore()
    shown = "Wed 2020-01-01 12:00:00.499999 UTC"
    assert not fact.process(told(fact.command("containerd", str(tmp_path / "none")), systemctl(shown=shown)))


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_a_unit_whose_file_changed_is_known(systemctl: Callable[..., dict[str, str]], answer: str) -> None:
    fact = facts.UnitOutdated()
    assert fact.process(told(fact.command("mysql"), systemctl(shown=answer))) is (answer == "yes")


# As exportfs of nfs-utils 2.6 prints it for the document's line.
EXPORTED = (
    "/mnt/shared/wordpress  172.31.0.0/24(sync,wdelay,hide,no_subtree_check,sec=sys,rw,no_root_squash,no_all_squash)"
)


@pytest.mark.parametrize(
    ("lines", "root_squash", "differ"),
    [
        ([EXPORTED], False, False),
        ([EXPORTED], True, True),
        ([EXPORTED.replace("rw", "ro")], False, True),
        ([EXPORTED.replace("172.31.0.0/24", "172.31.0.0/25")], False, True),
        ([EXPORTED, EXPORTED.replace("wordpress", "other")], False, True),
        ([], False, True),
    ],
)
def test_exports_are_compared_with_what_the_server_serves(lines: list[str], root_squash: bool, differ: bool) -> None:
    export = NfsJob(directory="/mnt/shared/wordpress", clients="172.31.0.0/24", root_squash=root_squash)
    wanted = {f"{export.directory} {export.clients}": set(nfs.exported_with(export))}
    assert nfs.exports_differ(facts.Exported().process(lines), wanted) is differ


# -- what follows a file


class Machine:
    """pyinfra on one machine: the facts that it tells, and the operations that were planned there by name."""

    def __init__(self, **told: Any) -> None:
        self.told = told
        self.planned: dict[str, dict[str, Any]] = {}

    def get_fact(self, fact: type[Any], **_: Any) -> Any:
        return self.told.get(fact.__name__, fact.default())

    def operation(self, *, name: str, **arguments: Any) -> Any:
        self.planned[name] = arguments
        return mock.Mock(did_change=f"when {name} changed")

    def prepared(self, monkeypatch: pytest.MonkeyPatch, module: ModuleType, prepare: Callable[[], None]) -> None:
        """Plan the operations of a module."""
        names = ("daemon_reload", "directory", "packages", "put", "service", "shell", "sysctl")
        operations = mock.Mock(**dict.fromkeys(names, self.operation))
        for place in (module, common):
            for name in ("host", "systemd", "server", "files", "apt"):
                if hasattr(place, name):
                    monkeypatch.setattr(place, name, self if name == "host" else operations)
        prepare()


FOLLOW_UPS = [
    (
        Role.WORKER,
        kubernetes,
        {"StartedBefore": True},
        "containerd takes its configuration",
        "containerd's configuration",
    ),
    (Role.NFS, nfs, {"StartedBefore": True}, "exports read anew", "exports"),
    (Role.NFS, nfs, {"KernelServesNfs": True, "Exported": {}}, "exports read anew", "exports"),
    (Role.NDB_DATA, ndb, {"UnitOutdated": True}, "units read anew", "unit ndbmtd"),
    (Role.TUNNEL, tunnel, {"UnitOutdated": True}, "connector's unit read anew", "unit of the connector"),
    (Role.TUNNEL, tunnel, {"StartedBefore": True}, "connector's unit read anew", "unit of the connector"),
]
SETTLED = {"Exported": {"/mnt/shared/wordpress 172.31.0.0/24": {"rw", "sync", "no_subtree_check", "no_root_squash"}}}


@pytest.mark.parametrize(("role", "module", "owed", "follow_up", "file"), FOLLOW_UPS)
def test_what_a_run_that_was_cut_off_owed_is_done_by_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
    job: Job,
    role: Role,
    module: ModuleType,
    owed: dict[str, Any],
    follow_up: str,
    file: str,
) -> None:
    node = next(node for node in job.nodes if node.role is role)
    settled = {**SETTLED, "KernelServesNfs": owed.get("KernelServesNfs", False)}
    for facts_told, condition in ((settled, f"when {file} changed"), ({**settled, **owed}, None)):
        machine = Machine(**facts_told)
        machine.prepared(monkeypatch, module, lambda: PREPARATIONS[role](job, node))
        assert machine.planned[follow_up].get("_if") == condition
    assert machine.planned[follow_up].get("restarted") or "commands" in machine.planned[follow_up] or module is ndb


def test_a_restart_of_the_connector_reads_its_unit_first(monkeypatch: pytest.MonkeyPatch, job: Job) -> None:
    machine = Machine(UnitOutdated=True)
    node = next(node for node in job.nodes if node.role is Role.TUNNEL)
    machine.prepared(monkeypatch, tunnel, lambda: tunnel.prepare(job, node))
    planned = machine.planned["connector's unit read anew"]
    assert (planned["service"], planned["daemon_reload"], planned["restarted"]) == (UNIT, True, True)


# -- files


@pytest.mark.parametrize("root_squash", [True, False])
def test_both_servers_export_what_the_environment_says(environment: Environment, root_squash: bool) -> None:
    chosen = nfs_job(environment.nfs.model_copy(update={"root_squash": root_squash}))
    kernels = common.render("exports.j2", export=chosen, options=nfs.exported_with(chosen))
    word = "root_squash" if root_squash else "no_root_squash"
    (line,) = [line for line in kernels.splitlines() if not line.startswith("#")]
    assert line == f"/mnt/shared/wordpress 172.31.0.0/24(rw,sync,no_subtree_check,{word})"
    ganeshas = common.render("ganesha.conf.j2", export=chosen)
    assert f"Squash = {'Root_Squash' if root_squash else 'No_Root_Squash'};" in ganeshas
    assert ganeshas.count("Squash = ") == 1
    assert all(part in ganeshas for part in ("Path = /mnt/shared/wordpress;", "Clients = 172.31.0.0/24;"))


@pytest.mark.parametrize("kernel", [True, False])
def test_the_server_is_chosen_by_the_machines_kernel(monkeypatch: pytest.MonkeyPatch, job: Job, kernel: bool) -> None:
    machine = Machine(KernelServesNfs=kernel)
    node = next(node for node in job.nodes if node.role is Role.NFS)
    machine.prepared(monkeypatch, nfs, lambda: nfs.prepare(job, node))
    assert machine.planned["exports"]["dest"] == ("/etc/exports" if kernel else "/etc/ganesha/ganesha.conf")
    assert ("nfs-server at boot" in machine.planned) is kernel
    assert ("nfs-ganesha at boot" in machine.planned) is not kernel


def test_the_environments_say_that_root_is_let_be_root(environment: Environment) -> None:
    """And why: the document's line, taken as it stands, would squash it."""
    assert environment.nfs.root_squash is False
    assert type(environment.nfs).model_validate({"export": "/x", "clients": "10.0.0.0/8"}).root_squash is True
    for name in ("lab", "seed"):
        (line,) = [line for line in find(name).read_text().splitlines() if line.startswith("root_squash")]
        assert "# chosen: " in line
