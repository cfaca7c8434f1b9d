"""The lab's Proxmox API over a fake driver: what it does, what it refuses, what a restart finds."""

import functools
import hashlib
import http.server
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from lab.driver import Nic
from lab.tasks import UPID
from tests.fake_driver import FakeDriver
from tests.lab_client import IMAGE, PASSWORD, SECRET, TOKEN, LabClient
from tests.served import served

QEMU = "/nodes/pve/qemu"
UNDEFINED = "property is not defined in schema and the schema does not allow additional properties"
KEYS = "ssh-ed25519 AAAA it's me\nssh-rsa BBBB other+key\n"


@pytest.fixture
def lab(tmp_path: Path) -> LabClient:
    lab = LabClient(tmp_path)
    lab.make_template()
    return lab


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / "disk.raw").write_bytes(IMAGE)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with served(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}"


# ------------------------------------------------------------------ who may call


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "No ticket"),
        ({"Authorization": f"PVEAPIToken={TOKEN}=wrong"}, "invalid token value!"),
        ({"Authorization": f"PVEAPIToken={TOKEN}="}, "invalid token value!"),
        ({"Authorization": f"PVEAPIToken=root@pam!other={SECRET}"}, "no such token 'root@pam!other'"),
        ({"Authorization": "PVEAPIToken=="}, "no such token ''"),
        ({"Cookie": "PVEAuthCookie=PVE:root@pam:7FFFFFFF::forged"}, "permission denied - invalid PVE ticket"),
    ],
)
@pytest.mark.parametrize("path", ["/version", "/nodes/pve/qemu", "/no/such/path"])
def test_a_stranger_is_refused_everywhere(lab: LabClient, headers: dict[str, str], reason: str, path: str) -> None:
    response = lab.request("GET", path, headers=headers)
    assert response.status_code == 401
    assert response.json() == {"data": None, "message": f"{reason}\n"}


def test_a_ticket_reads_and_with_its_csrf_token_writes(lab: LabClient) -> None:
    answer = lab.request("POST", "/access/ticket", data={"username": "root@pam", "password": PASSWORD}).json()["data"]
    cookie = {"Cookie": f"PVEAuthCookie={answer['ticket']}"}
    url = f"{QEMU}/9000/config"
    assert lab.request("GET", url, headers=cookie).status_code == 200
    refused = lab.request("PUT", url, headers=cookie, data={"description": "x"})
    assert (refused.status_code, refused.json()["message"]) == (401, "Permission denied - invalid csrf token\n")
    signed = {**cookie, "CSRFPreventionToken": answer["CSRFPreventionToken"]}
    assert lab.request("PUT", url, headers=signed, data={"description": "x"}).status_code == 200


def test_a_ticket_can_be_renewed_by_itself_and_nothing_else_logs_in(lab: LabClient) -> None:
    log_in = functools.partial(lab.request, "POST", "/access/ticket")
    ticket = log_in(data={"username": "root@pam", "password": PASSWORD}).json()["data"]["ticket"]
    assert log_in(data={"username": "root@pam", "password": ticket}).status_code == 200
    for username, password in (("root@pam", "wrong"), ("root@pam", ""), ("eve@pam", PASSWORD), ("eve@pam", ticket)):
        response = log_in(data={"username": username, "password": password})
        assert (response.status_code, response.json()["message"]) == (401, "authentication failure\n")


def test_no_secret_is_shown_where_objects_are_printed(lab: LabClient) -> None:
    assert SECRET not in repr(lab.auth)
    assert PASSWORD not in repr(lab.auth)


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("method", "path", "parameters", "errors"),
    [
        ("GET", f"{QEMU}/abc/config", {}, {"vmid": "type check ('integer') failed - got 'abc'"}),
        ("GET", f"{QEMU}/99/config", {}, {"vmid": "value must have a minimum value of 100"}),
        ("PUT", f"{QEMU}/9000/config", {"nonsense": 1}, {"nonsense": UNDEFINED}),
        ("PUT", f"{QEMU}/9000/config", {"net32": "virtio"}, {"net32": UNDEFINED}),
        ("PUT", f"{QEMU}/9000/config", {"net[n]": "virtio"}, {"net[n]": UNDEFINED}),
        ("PUT", f"{QEMU}/9000/config", {"net": "virtio"}, {"net": UNDEFINED}),
        ("PUT", f"{QEMU}/9000/config", {"onboot": "maybe"}, {"onboot": "type check ('boolean') failed - got 'maybe'"}),
        ("PUT", f"{QEMU}/9000/config", {"delete": "nonsense"}, {"delete": "unknown option 'nonsense'"}),
        (
            "PUT",
            f"{QEMU}/9000/config",
            {"tags": "good,b@d"},
            {"tags": "invalid format - invalid characters in tag\n"},
        ),
        (
            "PUT",
            f"{QEMU}/9000/config",
            {"boot": "order=scsi7"},
            {"boot": "invalid bootorder: device 'scsi7' does not exist'"},
        ),
        (
            "PUT",
            f"{QEMU}/9000/config",
            {"net1": "bridge=vmbr1", "memory": "lots"},
            {
                "net1": "invalid format - format error\nnet1.model: property is missing and it is not optional\n",
                "memory": "invalid format - format error\nmemory.current: type check ('integer') failed - got 'lots'\n",
            },
        ),
        ("POST", f"{QEMU}/9000/clone", {"name": "x"}, {"newid": "property is missing and it is not optional"}),
        (
            "GET",
            "/cluster/resources",
            {"type": "cat"},
            {"type": "value 'cat' does not have a value in the enumeration 'vm, storage, node, sdn'"},
        ),
        ("GET", "/cluster/nextid", {"vmid": 9000}, {"vmid": "VM 9000 already exists"}),
        ("POST", f"{QEMU}/9000/status/start", {"skiplock": 1}, {"skiplock": "Only root may use this option."}),
        ("GET", "/nodes/pve/tasks/UPID:nonsense/status", {}, {"upid": "unable to parse worker upid"}),
        (
            "GET",
            "/nodes/pve/tasks/UPID:pve:00000001:00000002:00000003:qmstart:100:root@pam:/status",
            {},
            {"upid": "no such task"},
        ),
        (
            "POST",
            "/nodes/pve/storage/local/download-url",
            {"url": "http://127.0.0.1/x", "content": "import", "filename": "x.exe"},
            {"filename": "invalid filename or wrong extension"},
        ),
        (
            "POST",
            "/nodes/pve/storage/local/download-url",
            {"url": "http://127.0.0.1/x", "content": "import", "filename": "../x.raw"},
            {"filename": "invalid filename or wrong extension"},
        ),
        (
            "POST",
            "/nodes/pve/storage/local/download-url",
            {"url": "http://127.0.0.1/x", "content": "import", "filename": "x.raw", "checksum": "00"},
            {"checksum-algorithm": "missing property required by 'checksum'"},
        ),
        (
            "POST",
            QEMU,
            {"vmid": 100, "scsi0": "local:0,import-from=local:import/debian-12.raw"},
            {"storage": "storage 'local' does not support vm images"},
        ),
    ],
)
def test_wrong_parameters_are_named_in_pves_words(
    lab: LabClient, method: str, path: str, parameters: dict[str, object], errors: dict[str, str]
) -> None:
    response = lab.send(method, path, **parameters)
    assert response.status_code == 400
    assert response.json() == {"data": None, "message": "Parameter verification failed.\n", "errors": errors}


@pytest.mark.parametrize(
    ("method", "path", "parameters", "message"),
    [
        ("GET", f"{QEMU}/100/config", {}, "Configuration file 'nodes/pve/qemu-server/100.conf' does not exist"),
        ("POST", QEMU, {"vmid": 9000}, "unable to create VM 9000 - VM 9000 already exists on node 'pve'"),
        (
            "POST",
            f"{QEMU}/9000/clone",
            {"newid": 9000},
            "unable to create VM 9000: config file already exists",
        ),
        ("POST", f"{QEMU}/9000/status/shutdown", {}, "VM 9000 not running"),
        ("PUT", f"{QEMU}/9000/config", {}, "no options specified"),
        (
            "PUT",
            f"{QEMU}/9000/config",
            {"cores": 2, "digest": "0" * 40},
            "checksum mismatch (file change by other user?)",
        ),
        ("POST", f"{QEMU}/9000/agent/ping", {}, "VM 9000 is not running"),
        ("POST", f"{QEMU}/9000/template", {}, "you can't convert a template to a template"),
        ("PUT", f"{QEMU}/9000/resize", {"disk": "scsi1", "size": "+1G"}, "disk 'scsi1' does not exist"),
        ("GET", "/nodes/pve/storage/nowhere/content", {}, "storage 'nowhere' does not exist"),
        (
            "DELETE",
            "/nodes/pve/storage/local-lvm/content/local-lvm:base-9000-disk-0",
            {},
            "Cannot remove image, a guest with VMID '9000' exists!",
        ),
        (
            "POST",
            f"{QEMU}/9000/snapshot",
            {"snapname": "current"},
            "unable to use snapshot name 'current' (reserved name)",
        ),
        (
            "GET",
            "/nodes/other/qemu",
            {},
            "hostname lookup 'other' failed - failed to get address info for: other: Name or service not known",
        ),
        ("GET", "/cluster/ha/groups", {}, "cannot index groups: ha groups have been migrated to rules"),
    ],
)
def test_what_cannot_be_done_is_refused_in_pves_words(
    lab: LabClient, method: str, path: str, parameters: dict[str, object], message: str
) -> None:
    response = lab.send(method, path, **parameters)
    assert (response.status_code, response.json()) == (500, {"data": None, "message": f"{message}\n"})


@pytest.mark.parametrize(("method", "path"), [("GET", "/x"), ("POST", "/version"), ("POST", f"{QEMU}/9000/migrate")])
def test_an_unknown_call_is_not_implemented(lab: LabClient, method: str, path: str) -> None:
    response = lab.send(method, path)
    assert (response.status_code, response.json()["message"]) == (501, f"Method '{method} {path}' not implemented\n")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{"),
        ("application/json", b"[]"),
        ("application/json", b"\xff"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
    ],
)
def test_a_malformed_body_is_a_400(lab: LabClient, kind: str, body: bytes) -> None:
    headers = {**lab.headers, "Content-Type": kind}
    assert lab.request("PUT", f"{QEMU}/9000/config", headers=headers, content=body).status_code == 400


def test_json_bodies_are_read_like_forms(lab: LabClient) -> None:
    body = {"cores": 3, "memory": 2048, "onboot": True, "ipconfig0": "ip=172.31.0.9/24"}
    assert lab.request("PUT", f"{QEMU}/9000/config", headers=lab.headers, json=body).status_code == 200
    config = lab.config(9000)
    assert (config["cores"], config["memory"], config["onboot"]) == (3, "2048", 1)


# ------------------------------------------------------------------ the life of a VM


def test_a_clone_gets_its_own_disk_macs_and_identity(lab: LabClient) -> None:
    lab.make_vm(101)
    source, clone = lab.config(9000), lab.config(101)
    assert clone["scsi0"].startswith("local-lvm:vm-101-disk-0,size=")
    assert source["scsi0"].startswith("local-lvm:base-9000-disk-0,size=")
    assert clone["ide2"] == "local-lvm:vm-101-cloudinit,media=cdrom"
    assert re.fullmatch(r"virtio=BC:24:11(:[0-9A-F]{2}){3},bridge=vmbr1", clone["net0"])
    assert clone["name"] == "vm101"
    assert "template" not in clone
    assert all(source[key] != clone[key] for key in ("net0", "smbios1", "vmgenid", "digest"))
    assert lab.driver.disks[101] == IMAGE


def test_a_guest_starts_as_its_configuration_says(lab: LabClient) -> None:
    lab.make_vm(
        101,
        start=True,
        cores=2,
        sockets=2,
        memory=4096,
        cpuunits=400,
        ciuser="admin",
        sshkeys=quote(KEYS, safe=""),
        nameserver="172.31.0.1 172.31.0.2",
        net0="virtio=BC:24:11:00:00:01,bridge=vmbr1,firewall=1",
        net1="virtio=BC:24:11:00:00:02,bridge=vmbr2,link_down=1",
        ipconfig0="ip=172.31.0.11/24,gw=172.31.0.1",
    )
    spec = lab.driver.specs[101]
    assert (spec.name, spec.cores, spec.memory_mib, spec.user) == ("vm101", 4, 4096, "admin")
    assert spec.cpu_units == 400
    assert spec.authorized_keys == ("ssh-ed25519 AAAA it's me", "ssh-rsa BBBB other+key")
    assert spec.nameserver == "172.31.0.1"
    first, second = spec.nics
    assert (first.index, first.bridge, first.mac, str(first.address)) == (
        0,
        "vmbr1",
        "BC:24:11:00:00:01",
        "172.31.0.11/24",
    )
    assert str(first.gateway) == "172.31.0.1"
    assert second == Nic(1, "vmbr2", "BC:24:11:00:00:02", None, None, link_down=True)


@pytest.mark.parametrize(
    ("net", "said"),
    [
        ("virtio,bridge=vmbr9", "bridge 'vmbr9' does not exist"),
        ("virtio,bridge=vmbr1,tag=5", "net0: the lab's kernel has no VLANs; leave out tag and trunks"),
        ("virtio", "net0: a lab guest's NIC needs a bridge"),
    ],
)
def test_a_network_the_lab_has_not_fails_the_start(lab: LabClient, net: str, said: str) -> None:
    lab.make_vm(101, net0=net)
    assert lab.task("POST", f"{QEMU}/101/status/start") == said
    assert 101 not in lab.driver.specs


def test_power_goes_through_all_its_states(lab: LabClient) -> None:
    lab.make_vm(101)

    def does(action: str, **parameters: object) -> str:
        ended = lab.task("POST", f"{QEMU}/101/status/{action}", **parameters)
        assert ended == "OK", f"{action}: {ended}"
        return str(lab.call("GET", f"{QEMU}/101/status/current")["qmpstatus"])

    assert does("start") == "running"
    assert does("suspend") == "paused"
    assert lab.call("GET", f"{QEMU}/101/status/current")["status"] == "running"
    assert [vm.get("qmpstatus") for vm in lab.call("GET", QEMU) if vm["vmid"] == 101] == [None]
    assert [vm["qmpstatus"] for vm in lab.call("GET", QEMU, full=1) if vm["vmid"] == 101] == ["paused"]
    assert does("resume") == "running"
    assert does("reboot", timeout=5) == "running"
    assert does("reset") == "running"
    assert does("shutdown", timeout=5) == "stopped"
    assert does("start") == "running"
    assert does("stop") == "stopped"
    assert does("stop") == "stopped"


def test_a_guest_that_does_not_shut_down_fails_the_task_or_is_forced(lab: LabClient) -> None:
    lab.make_vm(101, start=True)
    lab.driver.failures["shutdown"] = "still running after 5 s"
    said = lab.task("POST", f"{QEMU}/101/status/shutdown", timeout=5)
    assert said == "VM quit/powerdown failed - guest 101: shutdown: still running after 5 s"
    assert lab.driver.status(101).state == "running"
    assert lab.task("POST", f"{QEMU}/101/status/shutdown", timeout=5, forceStop=1) == "OK"
    assert lab.driver.status(101).state == "stopped"


def test_starting_what_runs_or_is_a_template_fails_the_task(lab: LabClient) -> None:
    lab.make_vm(101, start=True)
    assert lab.task("POST", f"{QEMU}/101/status/start") == "VM 101 already running"
    assert lab.task("POST", f"{QEMU}/9000/status/start") == "you can't start a vm if it's a template"


def test_a_running_vm_is_not_destroyed_and_a_stopped_one_is_gone(lab: LabClient) -> None:
    lab.make_vm(101, start=True)
    assert lab.send("DELETE", f"{QEMU}/101").json()["message"] == "VM 101 is running - destroy failed\n"
    lab.task("POST", f"{QEMU}/101/status/stop")
    assert lab.task("DELETE", f"{QEMU}/101", purge=1, destroy__unreferenced__disks=1) == "OK"
    assert 101 not in lab.driver.disks
    assert [vm["vmid"] for vm in lab.call("GET", QEMU)] == [9000]


def test_protection_keeps_a_vm(lab: LabClient) -> None:
    lab.make_vm(101, protection=1)
    assert lab.send("DELETE", f"{QEMU}/101").json()["message"] == "can't remove VM 101 - protection mode enabled\n"


def test_a_failed_import_leaves_no_vm(lab: LabClient) -> None:
    lab.driver.failures["create_disk"] = "no space left on device"
    said = lab.task("POST", QEMU, vmid=100, scsi0="local-lvm:0,import-from=local:import/debian-12.raw")
    assert said == "unable to create VM 100 - guest 100: create_disk: no space left on device"
    assert lab.send("GET", f"{QEMU}/100/config").status_code == 500
    assert lab.call("GET", "/cluster/nextid") == "100"


def test_a_failed_clone_leaves_no_vm(lab: LabClient) -> None:
    lab.driver.failures["clone_disk"] = "no space left on device"
    said = lab.task("POST", f"{QEMU}/9000/clone", newid=101)
    assert said == "clone failed: guest 101: clone_disk: no space left on device"
    assert [vm["vmid"] for vm in lab.call("GET", QEMU)] == [9000]


def test_a_disk_grows_and_never_shrinks(lab: LabClient) -> None:
    lab.make_vm(101)
    assert lab.task("PUT", f"{QEMU}/101/resize", disk="scsi0", size="4G") == "OK"
    assert lab.task("PUT", f"{QEMU}/101/resize", disk="scsi0", size="+1G") == "OK"
    assert lab.config(101)["scsi0"] == "local-lvm:vm-101-disk-0,size=5G"
    assert lab.task("PUT", f"{QEMU}/101/resize", disk="scsi0", size="2G") == "shrinking disks is not supported"
    assert (
        lab.send("PUT", f"{QEMU}/101/resize", disk="ide2", size="2G").json()["message"] == "you can't resize a cdrom\n"
    )


# ------------------------------------------------------------------ configuration of a running guest


def test_a_cable_is_pulled_and_plugged_in_the_running_guest(lab: LabClient) -> None:
    lab.make_vm(101, net0="virtio=BC:24:11:00:00:01,bridge=vmbr1", start=True)
    lab.call("PUT", f"{QEMU}/101/config", net0="virtio=BC:24:11:00:00:01,bridge=vmbr1,link_down=1")
    assert lab.driver.links == {(101, 0): False}
    assert lab.config(101)["net0"].endswith(",link_down=1")
    lab.call("PUT", f"{QEMU}/101/config", net0="virtio=BC:24:11:00:00:01,bridge=vmbr1")
    assert lab.driver.links == {(101, 0): True}


def test_memory_and_cores_wait_for_the_next_start(lab: LabClient) -> None:
    lab.make_vm(101, memory=1024, cores=1, start=True)
    lab.call("PUT", f"{QEMU}/101/config", memory=2048, cores=2, description="now")
    assert lab.driver.memory_mib == {}
    now, after = lab.config(101, current=1), lab.config(101)
    assert (now["memory"], after["memory"], now["description"]) == ("1024", "2048", "now")
    pending = {item["key"]: item for item in lab.call("GET", f"{QEMU}/101/pending")}
    assert pending["cores"] == {"key": "cores", "value": 1, "pending": 2}
    lab.call("PUT", f"{QEMU}/101/config", revert="cores")
    assert lab.task("POST", f"{QEMU}/101/status/reboot") == "OK"
    assert (lab.driver.specs[101].memory_mib, lab.driver.specs[101].cores) == (2048, 1)
    assert all(item.keys() == {"key", "value"} for item in lab.call("GET", f"{QEMU}/101/pending"))


def test_weight_changes_at_once(lab: LabClient) -> None:
    lab.make_vm(101, start=True)
    lab.call("PUT", f"{QEMU}/101/config", cpuunits=400)
    assert (lab.driver.cpu_units, lab.config(101, current=1)["cpuunits"]) == ({101: 400}, 400)
    lab.call("PUT", f"{QEMU}/101/config", delete="cpuunits")
    assert lab.driver.cpu_units == {101: 100}
    lab.task("POST", f"{QEMU}/101/status/stop")
    lab.call("PUT", f"{QEMU}/101/config", cpuunits=262_144)
    assert lab.driver.cpu_units == {101: 100}
    lab.task("POST", f"{QEMU}/101/status/start")
    assert lab.driver.specs[101].cpu_units == 10_000


def test_memory_changes_at_once_where_hotplug_says_so(lab: LabClient) -> None:
    lab.make_vm(101, memory=1024, hotplug="network,disk,memory", start=True)
    lab.call("PUT", f"{QEMU}/101/config", memory=2048)
    assert lab.driver.memory_mib == {101: 2048}
    assert lab.config(101, current=1)["memory"] == "2048"


def test_keys_are_deleted_now_or_at_the_next_start(lab: LabClient) -> None:
    lab.make_vm(101, tags="b;A,b", ciuser="admin", start=True)
    assert lab.config(101)["tags"] == "a;b"
    lab.call("PUT", f"{QEMU}/101/config", delete="tags,ciuser")
    now, after = lab.config(101, current=1), lab.config(101)
    assert "tags" not in now
    assert now["ciuser"] == "admin"
    assert "ciuser" not in after


def test_the_asynchronous_change_is_a_task(lab: LabClient) -> None:
    assert lab.task("POST", f"{QEMU}/9000/config", description="later") == "OK"
    assert lab.task("POST", f"{QEMU}/9000/config", cores=2, digest="0" * 40).startswith("checksum mismatch")
    assert lab.task("POST", f"{QEMU}/9000/config", boot="order=scsi7") == (
        "Parameter verification failed. boot: invalid bootorder: device 'scsi7' does not exist'"
    )
    assert lab.config(9000)["description"] == "later"


# ------------------------------------------------------------------ snapshots


def test_a_snapshot_brings_disk_and_configuration_back(lab: LabClient) -> None:
    lab.make_vm(101, cores=1, start=True)
    assert lab.task("POST", f"{QEMU}/101/snapshot", snapname="before", description="clean") == "OK"
    lab.driver.disks[101] = b"spoilt"
    lab.task("POST", f"{QEMU}/101/status/stop")
    lab.call("PUT", f"{QEMU}/101/config", cores=4)
    assert lab.task("POST", f"{QEMU}/101/snapshot/before/rollback", start=1) == "OK"
    assert (lab.driver.disks[101], lab.driver.states[101], lab.config(101)["cores"]) == (IMAGE, "running", 1)
    before, current = lab.call("GET", f"{QEMU}/101/snapshot")
    assert (before["name"], before["description"]) == ("before", "clean")
    assert (current["name"], current["parent"], current["running"]) == ("current", "before", 1)


def test_a_deleted_snapshot_hands_its_children_to_its_parent(lab: LabClient) -> None:
    lab.make_vm(101)
    for name in ("one", "two", "three"):
        assert lab.task("POST", f"{QEMU}/101/snapshot", snapname=name) == "OK"
    assert lab.task("DELETE", f"{QEMU}/101/snapshot/two") == "OK"
    parents = {item["name"]: item.get("parent") for item in lab.call("GET", f"{QEMU}/101/snapshot")}
    assert parents == {"one": None, "three": "one", "current": "three"}
    assert lab.task("DELETE", f"{QEMU}/101/snapshot/two") == "snapshot 'two' does not exist"
    assert lab.task("POST", f"{QEMU}/101/snapshot", snapname="one") == "snapshot name 'one' already used"


# ------------------------------------------------------------------ the guest agent


def test_a_command_runs_in_the_guest(lab: LabClient) -> None:
    lab.make_vm(101, start=True)
    pid = lab.call("POST", f"{QEMU}/101/agent/exec", command=["cat"], input__data="hello")["pid"]
    status: dict[str, object] = {"exited": 0}
    while not status["exited"]:
        status = lab.call("GET", f"{QEMU}/101/agent/exec-status", pid=pid)
    assert status == {"exited": 1, "exitcode": 0, "out-data": "hello"}
    assert lab.call("GET", f"{QEMU}/101/agent/get-host-name") == {"result": {"host-name": "vm101"}}
    assert lab.call("GET", f"{QEMU}/101/agent/get-osinfo")["result"]["version-id"] == "12"
    response = lab.send("GET", f"{QEMU}/101/agent/exec-status", pid=1)
    assert response.json()["message"] == "Agent error: PID 1 does not exist\n"


def test_a_running_command_is_reported_as_such(lab: LabClient) -> None:
    lab.make_vm(101, start=True)
    with lab.driver.held("execute"):
        pid = lab.call("POST", f"{QEMU}/101/agent/exec", command="sleep 60")["pid"]
        assert lab.call("GET", f"{QEMU}/101/agent/exec-status", pid=pid) == {"exited": 0}


def test_a_hung_guest_has_no_agent(lab: LabClient) -> None:
    lab.make_vm(101, start=True)
    lab.task("POST", f"{QEMU}/101/status/suspend")
    for method, call in (("POST", "ping"), ("GET", "get-osinfo"), ("GET", "network-get-interfaces")):
        response = lab.send(method, f"{QEMU}/101/agent/{call}")
        assert (response.status_code, response.json()["message"]) == (500, "QEMU guest agent is not running\n")


# ------------------------------------------------------------------ download


def download(lab: LabClient, url: str, **parameters: object) -> str:
    return lab.task(
        "POST", "/nodes/pve/storage/local/download-url", url=url, content="import", filename="new.raw", **parameters
    )


def volumes(lab: LabClient) -> list[str]:
    return [volume["volid"] for volume in lab.call("GET", "/nodes/pve/storage/local/content")]


def test_an_image_is_downloaded_checked_and_deleted(lab: LabClient, mirror: str) -> None:
    right = {"checksum": hashlib.sha512(IMAGE).hexdigest(), "checksum__algorithm": "sha512"}
    assert download(lab, f"{mirror}/disk.raw", **right) == "OK"
    assert "local:import/new.raw" in volumes(lab)
    assert download(lab, f"{mirror}/disk.raw", **right) == "OK"
    assert download(lab, f"{mirror}/disk.raw").startswith("refusing to override existing file")
    assert lab.task("POST", QEMU, vmid=100, scsi0="local-lvm:0,import-from=local:import/new.raw") == "OK"
    assert lab.driver.disks[100] == IMAGE
    assert lab.task("DELETE", "/nodes/pve/storage/local/content/local:import/new.raw") == "OK"
    assert "local:import/new.raw" not in volumes(lab)


@pytest.mark.parametrize(
    ("path", "checksum", "said"),
    [
        ("disk.raw", "00" * 32, "checksum mismatch: got '"),
        ("disk.raw", "", "checksum mismatch: got '"),
        ("nothing.raw", "00" * 32, "download of '"),
    ],
)
def test_a_bad_download_leaves_nothing(lab: LabClient, mirror: str, path: str, checksum: str, said: str) -> None:
    ended = download(lab, f"{mirror}/{path}", checksum=checksum or "g", checksum__algorithm="sha256")
    assert ended.startswith(said)
    assert volumes(lab) == ["local:import/debian-12.raw"]
    assert [path.name for path in (lab.paths.state / "storage/local/import").iterdir()] == ["debian-12.raw"]


def test_an_unreachable_mirror_fails_the_task(lab: LabClient) -> None:
    assert download(lab, "http://127.0.0.1:1/disk.raw") != "OK"


# ------------------------------------------------------------------ locks and tasks


def test_a_vm_that_is_being_cloned_is_locked(lab: LabClient) -> None:
    with lab.driver.held("clone_disk"):
        upid = lab.call("POST", f"{QEMU}/9000/clone", newid=101)
        assert lab.send("PUT", f"{QEMU}/101/config", cores=2).json()["message"] == "VM is locked (clone)\n"
        assert lab.task("POST", f"{QEMU}/101/status/start") == "VM is locked (clone)"
        assert lab.send("POST", f"{QEMU}/101/clone", newid=102).json()["message"] == "VM is locked (clone)\n"
        assert lab.task("DELETE", f"{QEMU}/101") == "VM is locked (clone)"
        assert [vm["lock"] for vm in lab.call("GET", QEMU) if vm["vmid"] == 101] == ["clone"]
    assert lab.hypervisor.tasks.wait(upid, 30).exitstatus == "OK"
    assert "lock" not in lab.config(101)


def test_clones_of_one_template_queue(lab: LabClient) -> None:
    upids = [lab.call("POST", f"{QEMU}/9000/clone", newid=vmid) for vmid in range(101, 111)]
    assert {lab.hypervisor.tasks.wait(upid, 30).exitstatus for upid in upids} == {"OK"}
    assert lab.driver.simultaneous_clones == 1
    macs = {lab.config(vmid)["net0"] for vmid in range(101, 111)}
    assert len(macs) == 10


def test_a_change_under_a_long_task_times_out_as_pves_lock_does(tmp_path: Path) -> None:
    lab = LabClient(tmp_path, lock_timeout_s=0.05)
    lab.make_template()
    lab.make_vm(101, start=True)
    locked = "can't lock file '/var/lock/qemu-server/lock-101.conf' - got timeout"
    with lab.driver.held("shutdown"):
        shutdown = lab.call("POST", f"{QEMU}/101/status/shutdown")
        while ("shutdown", 101) not in lab.driver.calls:
            lab.call("GET", f"{QEMU}/101/status/current")
        assert lab.send("PUT", f"{QEMU}/101/config", description="x").json()["message"] == f"{locked}\n"
        assert lab.task("POST", f"{QEMU}/101/status/stop") == locked
        assert lab.task("POST", f"{QEMU}/101/status/stop", overrule__shutdown=1) == "OK"
        assert lab.driver.states[101] == "stopped"
    lab.hypervisor.tasks.wait(shutdown, 30)


def test_a_task_tells_its_story(lab: LabClient) -> None:
    upid = lab.call("POST", f"{QEMU}/9000/clone", newid=101)
    lab.hypervisor.tasks.wait(upid, 30)
    assert UPID.fullmatch(upid)
    status = lab.call("GET", f"/nodes/pve/tasks/{upid}/status")
    assert (status["status"], status["exitstatus"], status["type"], status["id"]) == (
        "stopped",
        "OK",
        "qmclone",
        "9000",
    )
    assert (status["user"], status["tokenid"]) == ("root@pam", "haproof")
    log = lab.call("GET", f"/nodes/pve/tasks/{upid}/log")
    assert log[-1] == {"n": len(log), "t": "TASK OK"}
    assert lab.call("GET", f"/nodes/pve/tasks/{upid}/log", start=1, limit=1)[0]["n"] == 2
    listed = lab.call("GET", "/nodes/pve/tasks", vmid=9000, typefilter="qmclone")
    assert [(task["upid"], task["status"]) for task in listed] == [(upid, "OK")]


# ------------------------------------------------------------------ restart


def test_a_restart_finds_everything_again(lab: LabClient, tmp_path: Path) -> None:
    lab.make_vm(101, cores=3)
    lab.task("POST", f"{QEMU}/101/snapshot", snapname="kept")
    before = lab.config(101), lab.call("GET", f"{QEMU}/101/snapshot"), lab.call("GET", "/nodes/pve/tasks")
    again = LabClient(tmp_path, lab.driver)
    assert (
        again.config(101),
        again.call("GET", f"{QEMU}/101/snapshot"),
        again.call("GET", "/nodes/pve/tasks"),
    ) == before


def kill_during(
    lab: LabClient, folder: Path, operation: str, method: str, path: str, **parameters: object
) -> LabClient:
    """The lab as it comes up after a kill in the middle of an operation: over a copy of the files at that moment."""
    with lab.driver.held(operation):
        upid = lab.call(method, path, **parameters)
        while operation not in [call for call, _ in lab.driver.calls[-1:]]:
            lab.hypervisor.tasks.wait(upid, 0.01)
        copy_tree(lab.paths.state, folder / "state")
        driver = FakeDriver()
        driver.disks, driver.snapshots = dict(lab.driver.disks), dict(lab.driver.snapshots)
        again = LabClient(folder, driver)
        task = again.hypervisor.tasks.get(upid)
        assert task.exitstatus == "interrupted"
        assert task.log[-1] == "TASK ERROR: interrupted"
    return again


def copy_tree(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())


def test_a_clone_that_was_killed_is_gone_and_can_be_made_again(lab: LabClient, tmp_path: Path) -> None:
    again = kill_during(lab, tmp_path / "2", "clone_disk", "POST", f"{QEMU}/9000/clone", newid=101)
    assert [vm["vmid"] for vm in again.call("GET", QEMU)] == [9000]
    again.make_vm(101)


def test_a_destruction_that_was_killed_is_completed(lab: LabClient, tmp_path: Path) -> None:
    lab.make_vm(101)
    again = kill_during(lab, tmp_path / "2", "delete_disk", "DELETE", f"{QEMU}/101")
    assert 101 not in again.driver.disks
    assert [vm["vmid"] for vm in again.call("GET", QEMU)] == [9000]


def test_a_snapshot_that_was_killed_is_not_there(lab: LabClient, tmp_path: Path) -> None:
    lab.make_vm(101)
    again = kill_during(lab, tmp_path / "2", "snapshot", "POST", f"{QEMU}/101/snapshot", snapname="half")
    assert [item["name"] for item in again.call("GET", f"{QEMU}/101/snapshot")] == ["current"]
    assert again.task("POST", f"{QEMU}/101/snapshot", snapname="half") == "OK"


def test_a_rollback_that_was_killed_is_done_again(lab: LabClient, tmp_path: Path) -> None:
    lab.make_vm(101)
    lab.task("POST", f"{QEMU}/101/snapshot", snapname="good")
    lab.driver.disks[101] = b"spoilt"
    again = kill_during(lab, tmp_path / "2", "rollback", "POST", f"{QEMU}/101/snapshot/good/rollback")
    assert again.driver.disks[101] == IMAGE
    assert "lock" not in again.config(101)
    assert again.task("POST", f"{QEMU}/101/status/start") == "OK"


def test_a_stray_half_written_file_does_no_harm(lab: LabClient, tmp_path: Path) -> None:
    (lab.paths.state / "qemu-server/.9000.json.new").write_text('{"conf')
    assert [vm["vmid"] for vm in LabClient(tmp_path, lab.driver).call("GET", QEMU)] == [9000]


# ------------------------------------------------------------------ the daemon's own calls


def test_what_is_to_start_by_itself_starts_in_order(lab: LabClient) -> None:
    for vmid, startup in ((101, ""), (102, "order=2"), (103, "order=1,up=0"), (104, "")):
        lab.make_vm(vmid, onboot=int(vmid != 104))
        if startup:
            lab.call("PUT", f"{QEMU}/{vmid}/config", startup=startup)
    assert lab.hypervisor.autostart() == {103: "OK", 102: "OK", 101: "OK"}
    assert [vmid for call, vmid in lab.driver.calls if call == "start"] == [103, 102, 101]
    lab.hypervisor.power_off_all()
    assert set(lab.driver.states.values()) == {"stopped"}


def test_a_lab_going_down_takes_no_new_task(lab: LabClient) -> None:
    lab.hypervisor.close()
    response = lab.send("POST", f"{QEMU}/9000/clone", newid=101)
    assert (response.status_code, response.json()["message"]) == (503, "the lab is going down: no new task is taken\n")


def test_the_cloud_init_documents_are_what_the_configuration_says(lab: LabClient) -> None:
    lab.make_vm(101, ciuser="admin", sshkeys=quote(KEYS, safe=""), ipconfig0="ip=172.31.0.11/24,gw=172.31.0.1")
    user = lab.call("GET", f"{QEMU}/101/cloudinit/dump", type="user")
    assert user.startswith("#cloud-config\nhostname: vm101\n")
    assert "- ssh-ed25519 AAAA it's me\n" in user
    assert "address: 172.31.0.11" in lab.call("GET", f"{QEMU}/101/cloudinit/dump", type="network")


def test_every_answer_is_json_with_data(lab: LabClient) -> None:
    response: httpx.Response = lab.send("GET", "/version")
    assert response.headers["content-type"] == "application/json"
    assert json.loads(response.content)["data"]["release"] == "9.1"
