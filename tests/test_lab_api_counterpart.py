"""The same calls by proxmoxer to the lab's API and to `fakepve`, which was written by others from PVE's sources.

Both are served over TLS. Statuses, messages, exit statuses and the fields of answers must be the same, except
where `DIFFERENCES` says why they are not.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from fakepve import FakePve
from proxmoxer import AuthenticationError, ProxmoxAPI, ResourceException

from lab import certificates
from lab.api.server import serve
from tests.lab_client import IMAGE, PASSWORD, SECRET, TEMPLATE, TOKEN, LabClient

pytest_plugins = ["fakepve.pytest_plugin"]
Step = tuple[str, Callable[[], object]]
TIMEOUT_S = 30
UNKNOWN_UPID = "UPID:pve:00000001:00000002:00000003:qmstart:100:root@pam:"


@dataclass(frozen=True)
class Outcome:
    """What a call came to: HTTP status, message and parameter errors; or a task's end; or the fields answered."""

    status: int = 200
    said: str = ""
    errors: tuple[tuple[str, str], ...] = ()
    fields: frozenset[str] = frozenset()

    def without(self, fields: frozenset[str]) -> "Outcome":
        return Outcome(self.status, self.said, self.errors, self.fields - fields)


@dataclass(frozen=True)
class Difference:
    """Fields that only one of the two gives, or a wholly different outcome, and why."""

    why: str
    lab: frozenset[str] = frozenset()
    fakepve: frozenset[str] = frozenset()
    outcome: bool = False


def differ(why: str, *, lab: str = "", fakepve: str = "", outcome: bool = False) -> Difference:
    return Difference(why, frozenset(lab.split()), frozenset(fakepve.split()), outcome)


NO_COUNTERS = "the lab's driver counts no bytes of network and disk; PVE's schema has all of these as optional"
PRESSURE = "the machine's kernel gives no pressure figures per guest, and there is no QEMU to have a version"
USE = "netin netout diskread diskwrite memhost"
DIFFERENCES = {
    "cluster status": differ(
        "the lab's node never joined a cluster: no entry of type cluster", fakepve="nodes quorate version"
    ),
    "resources": differ(f"{NO_COUNTERS}; the state of HA and SDN is not there to be shown", fakepve=USE),
    "resources of type vm": differ(NO_COUNTERS, fakepve=USE),
    "vms": differ(
        f"{NO_COUNTERS}; fakepve sends lock as null, and no template flag before one exists",
        fakepve="netin netout memhost",
    ),
    "status": differ(f"{NO_COUNTERS}; {PRESSURE}", fakepve=f"{USE} balloon clipboard"),
    "status of a running vm": differ(
        f"{NO_COUNTERS}; {PRESSURE}",
        fakepve=f"{USE} balloon clipboard running-machine running-qemu pressurecpusome pressurecpufull pressureiosome "
        "pressureiofull pressurememorysome pressurememoryfull",
    ),
    "agent of a stopped vm": differ("PVE looks for the VM's process before it asks the agent", outcome=True),
    "unknown node": differ(
        "fakepve's list of VMs does not look at the node; PVE proxies to it and fails", outcome=True
    ),
    "bad filter": differ(
        "fakepve's own /cluster/resources does not check its parameter; the schema does", outcome=True
    ),
    "unknown call": differ("PVE says 501 and not implemented, fakepve 404 with a page that is not JSON", outcome=True),
    "unknown task": differ(
        "PVE::API2::Tasks refuses the parameter (400), as fakepve's own catalogue has it", outcome=True
    ),
}


@dataclass(frozen=True)
class Served:
    """Where an API listens and how to become a client of it."""

    port: int
    ca: Path
    agent_up: Callable[[int], None]

    def connect(self, **credentials: Any) -> ProxmoxAPI:
        given = credentials or {"token_name": TOKEN.partition("!")[2], "token_value": SECRET}
        return ProxmoxAPI(
            "127.0.0.1", port=self.port, user="root@pam", verify_ssl=str(self.ca), timeout=TIMEOUT_S, **given
        )


@contextmanager
def serving(lab: LabClient) -> Iterator[Served]:
    certificate, key, ca = certificates.ensure(lab.paths.state, ["127.0.0.1", "pve"])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = serve(lab.app, listening, certificate, key)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield Served(listening.getsockname()[1], ca, lambda vmid: None)
        server.should_exit = True
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


@pytest.fixture
def lab(tmp_path: Path) -> LabClient:
    lab = LabClient(tmp_path)
    lab.put_image()
    return lab


@pytest.fixture
def served_lab(lab: LabClient) -> Iterator[Served]:
    with serving(lab) as served:
        yield served


@pytest.fixture
def served_fakepve(fakepve: FakePve, fakepve_cafile: str) -> Served:
    fakepve.nodes = {"pve": {"online": True}}
    fakepve.apitokens[TOKEN] = SECRET
    fakepve.storages["local"]["content"] = "import,iso,snippets"
    fakepve.storages["local"]["volumes"] = {
        "import/debian-12.raw": {"content": "import", "format": "raw", "size": len(IMAGE), "ctime": 1}
    }

    def agent_up(vmid: int) -> None:
        fakepve.vm(vmid).agent = {}

    return Served(fakepve.port, Path(fakepve_cafile), agent_up)


# ------------------------------------------------------------------ one call


def fields(answer: object) -> frozenset[str]:
    """The names in an answer; of a list, those that any item has."""
    if isinstance(answer, dict):
        return frozenset(answer)
    if isinstance(answer, list):
        return frozenset().union(*(fields(item) for item in answer))
    return frozenset({type(answer).__name__})


def observe(api: ProxmoxAPI, call: Callable[[], object]) -> Outcome:
    """Make a call, wait for its task if it is one, and note what came of it."""
    try:
        answer = call()
    except ResourceException as error:
        said = tuple(sorted((error.errors or {}).items()))
        return Outcome(error.status_code, error.content, said)
    if isinstance(answer, str) and answer.startswith("UPID:"):
        deadline = time.monotonic() + TIMEOUT_S
        status: dict[str, Any] = {}
        while status.get("status") != "stopped":
            assert time.monotonic() < deadline, f"{answer} has not ended in {TIMEOUT_S} s"
            status = api.nodes("pve").tasks(answer).status.get()
        return Outcome(said=status["exitstatus"], fields=fields(status))
    return Outcome(fields=fields(answer))


def story(api: ProxmoxAPI, agent_up: Callable[[int], None]) -> Iterator[Step]:
    """A build as provisioning does it, the life of a machine, and the mistakes people make."""
    yield from making(api)
    yield from configuring(api)
    yield from running(api, agent_up)
    yield from ending(api)
    yield from asking_wrongly(api)


def making(api: ProxmoxAPI) -> Iterator[Step]:
    node = api.nodes("pve")
    template, vm = node.qemu(9000), node.qemu(101)
    name = "local-lvm:0,import-from=local:import/debian-12.raw"
    yield "version", api.version.get
    yield "version of the node", node.version.get
    yield "nodes", api.nodes.get
    yield "cluster status", api.cluster.status.get
    yield "next id", api.cluster.nextid.get
    yield "content of local", node.storage("local").content.get
    yield "create", lambda: node.qemu.post(**TEMPLATE)
    yield "create again", lambda: node.qemu.post(vmid=9000, name="again")
    yield "create without id", lambda: node.qemu.post(name="x")
    yield "create with a bad tag", lambda: node.qemu.post(vmid=100, tags="a b@d")
    yield "create with a bad net", lambda: node.qemu.post(vmid=100, net0="virtio,bridge=vmbr1,colour=red")
    yield "create on no storage", lambda: node.qemu.post(vmid=100, scsi0=name.replace("local-lvm", "nowhere"))
    yield "convert", template.template.post
    yield "convert again", template.template.post
    yield "start of the template", template.status.start.post
    yield "clone", lambda: template.clone.post(newid=101, name="one", full=1, storage="local-lvm")
    yield "clone onto itself", lambda: template.clone.post(newid=101)
    yield "clone of nothing", lambda: node.qemu(555).clone.post(newid=102)
    yield "clone without id", lambda: template.clone.post(name="two")
    yield "clone to a bad name", lambda: template.clone.post(newid=102, name="not_a_name!")
    yield "clone to no node", lambda: template.clone.post(newid=102, target="elsewhere")
    yield "clone linked to a storage", lambda: template.clone.post(newid=102, full=0, storage="local-lvm")
    yield "linked clone", lambda: template.clone.post(newid=102)
    yield "linked clone of a vm", lambda: vm.clone.post(newid=103, full=0)


def configuring(api: ProxmoxAPI) -> Iterator[Step]:
    node = api.nodes("pve")
    vm = node.qemu(101)
    yield "put config", lambda: vm.config.put(cores=2, memory=2048, ipconfig0="ip=172.31.0.11/24,gw=172.31.0.1")
    yield "post config", lambda: vm.config.post(ciuser="debian", sshkeys="ssh-ed25519%20AAAA%20me", onboot=1)
    yield "stale digest", lambda: vm.config.put(cores=3, digest="0" * 40)
    yield "unknown option", lambda: vm.config.put(colour="red")
    yield "cores of nothing", lambda: vm.config.put(cores=0)
    yield "onboot maybe", lambda: vm.config.put(onboot="maybe")
    yield "keys not encoded", lambda: vm.config.put(sshkeys="ssh-ed25519 AAAA me")
    yield "bad address", lambda: vm.config.put(ipconfig0="ip=172.31.0.300/24")
    yield "boot from nothing", lambda: vm.config.put(boot="order=scsi7")
    yield "config", vm.config.get
    yield "config of nothing", node.qemu(555).config.get
    yield "config of a bad id", node.qemu("abc").config.get
    yield "pending", vm.pending.get
    yield "vms", node.qemu.get
    yield "status", vm.status.current.get


def running(api: ProxmoxAPI, agent_up: Callable[[int], None]) -> Iterator[Step]:
    vm = api.nodes("pve").qemu(101)
    yield "shutdown of a stopped vm", vm.status.shutdown.post
    yield "agent of a stopped vm", vm.agent.ping.post
    yield "start", vm.status.start.post
    agent_up(101)
    yield "start again", vm.status.start.post
    yield "status of a running vm", vm.status.current.get
    yield "resources", api.cluster.resources.get
    yield "resources of type vm", lambda: api.cluster.resources.get(type="vm")
    yield "ping", vm.agent.ping.post
    yield "exec", lambda: vm.agent.exec.post(command=["hostname"])
    yield "host name", vm.agent("get-host-name").get
    yield "interfaces", vm.agent("network-get-interfaces").get
    yield "destroy while running", vm.delete
    yield "template while running", vm.template.post
    yield "suspend", vm.status.suspend.post
    yield "resume", vm.status.resume.post
    yield "reboot", vm.status.reboot.post
    yield "reset", vm.status.reset.post


def ending(api: ProxmoxAPI) -> Iterator[Step]:
    vm = api.nodes("pve").qemu(101)
    yield "snapshot", lambda: vm.snapshot.post(snapname="one", description="first")
    yield "snapshot again", lambda: vm.snapshot.post(snapname="one")
    yield "snapshot of a bad name", lambda: vm.snapshot.post(snapname="1 bad")
    yield "snapshot of a reserved name", lambda: vm.snapshot.post(snapname="current")
    yield "snapshots", vm.snapshot.get
    yield "snapshot's config", vm.snapshot("one").config.get
    yield "rollback", vm.snapshot("one").rollback.post
    yield "rollback to nothing", vm.snapshot("two").rollback.post
    yield "delete snapshot", vm.snapshot("one").delete
    yield "delete it again", vm.snapshot("one").delete
    yield "stop", vm.status.stop.post
    yield "stop again", vm.status.stop.post
    yield "protect", lambda: vm.config.put(protection=1)
    yield "destroy what is protected", vm.delete
    yield "unprotect", lambda: vm.config.put(delete="protection")
    yield "destroy", lambda: vm.delete(purge=1)
    yield "destroy again", vm.delete


def asking_wrongly(api: ProxmoxAPI) -> Iterator[Step]:
    node = api.nodes("pve")
    yield "tasks", node.tasks.get
    yield "unknown task", node.tasks(UNKNOWN_UPID).status.get
    yield "unknown node", api.nodes("other").qemu.get
    yield "unknown storage", node.storage("nowhere").status.get
    yield "bad filter", lambda: api.cluster.resources.get(type="cat")
    yield "unknown call", api.nowhere.get
    yield (
        "download to block storage",
        lambda: node.storage("local-lvm")("download-url").post(
            url="http://127.0.0.1:1/x.raw", content="import", filename="x.raw"
        ),
    )
    yield (
        "download without address",
        lambda: node.storage("local")("download-url").post(content="iso", filename="x.iso"),
    )


def outcomes(served: Served) -> dict[str, Outcome]:
    api = served.connect()
    return {name: observe(api, call) for name, call in story(api, served.agent_up)}


def test_both_answer_alike(served_lab: Served, served_fakepve: Served) -> None:
    ours, theirs = outcomes(served_lab), outcomes(served_fakepve)
    faults = []
    for name, lab in ours.items():
        known = DIFFERENCES.get(name, Difference(""))
        if known.outcome:
            assert lab != theirs[name], f"{name}: no difference any more: {known.why}"
        elif lab.without(known.lab) != theirs[name].without(known.fakepve):
            faults.append(
                f"{name}:\n  lab     {lab.without(known.lab)}\n  fakepve {theirs[name].without(known.fakepve)}"
            )
        else:
            assert known.lab <= lab.fields, f"{name}: the lab does not give {known.lab - lab.fields}"
            assert known.fakepve <= theirs[name].fields, f"{name}: fakepve lacks {known.fakepve - theirs[name].fields}"
    assert not faults, "\n".join(faults)
    assert DIFFERENCES.keys() <= ours.keys()
    assert sum(outcome.status == 200 for outcome in ours.values()) > len(ours) / 2


# ------------------------------------------------------------------ how clients get in


def test_a_wrong_token_and_a_wrong_password_are_refused_by_both(served_lab: Served, served_fakepve: Served) -> None:
    for served in (served_lab, served_fakepve):
        api = served.connect(token_name="haproof", token_value="wrong")
        with pytest.raises(ResourceException) as caught:
            api.version.get()
        assert caught.value.status_code == 401
        with pytest.raises(AuthenticationError):
            served.connect(password="wrong")


def test_a_password_opens_both_and_writes(lab: LabClient, served_lab: Served, served_fakepve: Served) -> None:
    for served, password in ((served_lab, PASSWORD), (served_fakepve, "secret")):
        api = served.connect(password=password)
        assert observe(api, partial(api.nodes("pve").qemu.post, vmid=100, name="x")).said == "OK"
    assert 100 in lab.hypervisor.inventory


def test_another_authority_is_not_trusted(served_lab: Served, tmp_path: Path) -> None:
    _, _, other = certificates.ensure(tmp_path / "other", ["127.0.0.1"])
    api = ProxmoxAPI(
        "127.0.0.1", port=served_lab.port, user="root@pam", token_name="x", token_value="y", verify_ssl=str(other)
    )
    with pytest.raises(requests.exceptions.SSLError):
        api.version.get()


def test_the_status_line_carries_the_message(served_lab: Served) -> None:
    with pytest.raises(ResourceException) as caught:
        served_lab.connect().nodes("pve").qemu(555).config.get()
    assert caught.value.content == "Configuration file 'nodes/pve/qemu-server/555.conf' does not exist"
    reply = requests.get(
        f"https://127.0.0.1:{served_lab.port}/api2/json/version", verify=str(served_lab.ca), timeout=10
    )
    assert (reply.status_code, reply.reason) == (401, "No ticket")
    assert "x-lab-reason" not in reply.headers


# ------------------------------------------------------------------ certificates and token


def test_the_certificate_lasts_and_follows_the_addresses(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in certificates.ensure(tmp_path, ["127.0.0.1", "pve"])]
    assert [path.read_bytes() for path in certificates.ensure(tmp_path, ["127.0.0.1"])] == first
    certificate, key, ca = certificates.ensure(tmp_path, ["172.31.0.1"])
    assert ca.read_bytes() == first[2]
    assert certificate.read_bytes() != first[0]
    assert {path.stat().st_mode & 0o777 for path in (key, tmp_path / "pve-root-ca.key")} == {0o600}


def test_a_key_that_is_not_the_certificates_is_replaced(tmp_path: Path) -> None:
    certificate, key, _ = certificates.ensure(tmp_path, ["127.0.0.1"])
    before = certificate.read_bytes()
    key.write_bytes((tmp_path / "pve-root-ca.key").read_bytes())
    certificates.ensure(tmp_path, ["127.0.0.1"])
    assert certificate.read_bytes() != before


def test_the_token_is_made_once_and_only_root_reads_it(tmp_path: Path) -> None:
    token = certificates.ensure_token(tmp_path)
    assert certificates.ensure_token(tmp_path) == token
    assert (tmp_path / "api-token").stat().st_mode & 0o777 == 0o600
    assert len(token) == 36
