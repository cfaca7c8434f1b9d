"""A Proxmox VE that is slow, away, half dead, or something else: waited for within a budget, then one clear error."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from environments.load import find, load
from environments.model import Hypervisor as Description
from environments.secret import SecretRef
from lab import certificates
from provisioning.hypervisor import Hypervisor, HypervisorError, Patience
from tests.unreliable import SILENCE, Says, Unreliable, serving

UPID = "UPID:pve:0000ABCD:00000001:65000000:qmclone:9000:root@pam:"
OK = Says({"data": UPID})
ENDED = Says({"data": {"status": "stopped", "exitstatus": "OK"}})
LOCKED = Says({"data": None}, 500, "can't lock file '/var/lock/qemu-server/lock-111.conf' - got timeout")
VERSION = Says({"data": {"version": "9.1.3"}})
PATIENT = Patience(answer_s=0.5, recovery_s=30, pause_s=0.02)
SHORT = replace(PATIENT, recovery_s=0.6)
Connect = Callable[..., Hypervisor]
Ask = Callable[..., tuple[Hypervisor, Unreliable]]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Certificate, key and authority of 127.0.0.1."""
    return certificates.ensure(tmp_path_factory.mktemp("tls"), ["127.0.0.1"])


@pytest.fixture
def connect(tls: tuple[Path, Path, Path], tmp_path: Path) -> Connect:
    """A connection to whoever is at an address."""
    (tmp_path / "token").write_text("0d6f7b3c-1111-4222-8333-944444444444")
    told = load(find("lab")).hypervisor.model_dump()
    told |= {"ca": str(tls[2]), "token": SecretRef(reference=f"file:{tmp_path}/token")}

    def connect(address: str, patience: Patience = PATIENT) -> Hypervisor:
        return Hypervisor(Description.model_validate(told | {"api_url": f"https://{address}"}), patience)

    return connect


@pytest.fixture
def asked(connect: Connect, tls: tuple[Path, Path, Path]) -> Iterator[Ask]:
    """Makes a hypervisor that has answered once, and then says what it is told to."""
    with ExitStack() as stack:

        def ask(*script: Says, patience: Patience = PATIENT) -> tuple[Hypervisor, Unreliable]:
            server = stack.enter_context(serving(VERSION, *script, tls=tls[:2]))
            hypervisor = connect(server.address, patience)
            assert hypervisor.version() == "9.1.3"
            server.asked.clear()
            return hypervisor, server

        yield ask


def refused(status: int, reason: str) -> Says:
    return Says({"data": None}, status, reason)


PASSING = {
    "away": refused(503, "Service Unavailable"),
    "node away": refused(595, "No route to host"),
    "node silent": refused(596, "Connection timed out"),
    "proxy waits": refused(504, "Gateway Timeout"),
    "locked": LOCKED,
    "cut off": SILENCE,
    "half": Says({"data": {"cores": 4}}, cut_off=9),
    "slow": Says({"data": {}}, late=True),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_passes_is_waited_for(asked: Ask, fault: Says) -> None:
    hypervisor, server = asked(fault, Says({"data": {"cores": 4}}))
    assert hypervisor.config(111) == {"cores": 4}
    assert server.asked == ["GET /api2/json/nodes/pve/qemu/111/config"] * 2


def test_a_paused_machine_is_not_told_as_running(asked: Ask) -> None:
    listed = [{"vmid": vmid, "name": "a", "status": "running", "type": "qemu"} for vmid in (111, 112, 113)]
    here = [{"vmid": 111, "status": "running", "qmpstatus": "paused"}, {"vmid": 112, "status": "running"}]
    hypervisor, _ = asked(Says({"data": listed}), Says({"data": here}))
    told = hypervisor.vms()
    assert {vmid: vm.status for vmid, vm in told.items()} == {111: "paused", 112: "running", 113: "running"}
    assert [vmid for vmid, vm in told.items() if not vm.here] == [113], "on another node"


@pytest.mark.parametrize("name", ["away", "locked", "cut off", "half", "slow"])
def test_what_does_not_pass_is_one_clear_error(asked: Ask, name: str) -> None:
    hypervisor, server = asked(PASSING[name], patience=SHORT)
    with pytest.raises(HypervisorError) as told:
        hypervisor.config(111)
    assert re.fullmatch(
        r"GET qemu/111/config on https://127\.0\.0\.1:\d+/: .+, for 0\.6 s; look at the host's load, .+ pvedaemon",
        str(told.value),
    )
    assert len(server.asked) > 1


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_configuration_is_put_again(asked: Ask, fault: Says) -> None:
    hypervisor, server = asked(fault, Says({"data": None}))
    assert hypervisor.call("put", "qemu/111/config", tags="a") is None
    assert len(server.asked) == 2


@pytest.mark.parametrize("name", ["away", "node away", "locked"])
def test_what_was_surely_not_begun_is_begun_again(asked: Ask, name: str) -> None:
    hypervisor, server = asked(PASSING[name], OK, ENDED)
    hypervisor.task("post", "qemu/9000/clone", newid=111)
    assert [line.split()[0] for line in server.asked] == ["POST", "POST", "GET"]


@pytest.mark.parametrize("name", ["node silent", "proxy waits", "cut off", "half", "slow"])
def test_what_may_have_been_begun_is_not_begun_twice(asked: Ask, name: str) -> None:
    hypervisor, server = asked(PASSING[name], OK, ENDED)
    with pytest.raises(HypervisorError, match=r"POST qemu/9000/clone .*may have been done .* run this again"):
        hypervisor.task("post", "qemu/9000/clone", newid=111)
    assert len(server.asked) == 1


@pytest.mark.parametrize(("status", "reason"), [(400, "Parameter verification failed."), (500, "no such VM")])
def test_a_refusal_is_told_at_once(asked: Ask, status: int, reason: str) -> None:
    hypervisor, server = asked(refused(status, reason))
    with pytest.raises(HypervisorError, match=f"GET qemu/111/config on .*: {status} .*{reason}"):
        hypervisor.config(111)
    assert len(server.asked) == 1


def test_a_token_that_is_refused_is_named_at_once(asked: Ask) -> None:
    hypervisor, server = asked(refused(401, "invalid token value!"))
    with pytest.raises(HypervisorError, match=r"refuses the token root@pam!haproof \(401\); check hypervisor.token_id"):
        hypervisor.vms()
    assert len(server.asked) == 1


def test_an_api_that_never_answered_is_not_waited_for(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(HypervisorError, match=r"does not answer .*; check hypervisor.api_url, and that it is up"):
        connect(address).version()


@pytest.mark.parametrize("farewell", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["hangs up", "plain HTTP"])
def test_what_is_no_tls_is_not_told_as_a_wrong_certificate(connect: Connect, farewell: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_say, args=(server, farewell), daemon=True)
        thread.start()
        with pytest.raises(HypervisorError, match=r"does not answer \(.*\); check hypervisor.api_url"):
            connect(f"127.0.0.1:{server.getsockname()[1]}").version()
        thread.join()


def _say(server: socket.socket, farewell: bytes) -> None:
    with server.accept()[0] as connection:
        connection.sendall(farewell)


def test_an_api_that_is_gone_for_good_is_one_clear_error(asked: Ask) -> None:
    hypervisor, server = asked(replace(VERSION, headers={"Connection": "close"}), patience=SHORT)
    hypervisor.version()
    server.shutdown()
    server.server_close()
    with pytest.raises(HypervisorError, match=r"POST qemu/111/status/start on .* does not answer \(.*\), for 0.6 s"):
        hypervisor.start(111)


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_an_authority_that_cannot_be_used_is_named(
    connect: Connect, tls: tuple[Path, Path, Path], tmp_path: Path, text: str | None
) -> None:
    hypervisor = connect("127.0.0.1:1")
    authority = tmp_path / "ca.pem"
    if text:
        authority.write_text(text)
    description = hypervisor.description.model_copy(update={"ca": str(authority)})
    with serving(VERSION, tls=tls[:2]) as server:
        url = f"https://{server.address}"
        with pytest.raises(HypervisorError, match=r"hypervisor.ca, .*/ca.pem, is no certificate"):
            Hypervisor(description.model_copy(update={"api_url": url})).version()


def test_a_certificate_of_somebody_else_is_told_as_such(asked: Ask, connect: Connect, tmp_path: Path) -> None:
    other = certificates.ensure(tmp_path / "other", ["127.0.0.1"])
    with serving(VERSION, tls=other[:2]) as server, pytest.raises(HypervisorError, match="does not vouch for; set"):
        connect(server.address).version()


# Tasks


def failed(status: str, *log: str) -> tuple[Says, Says]:
    """The end of a task, and the end of its log."""
    lines = [{"n": number, "t": line} for number, line in enumerate(log, 1)]
    return Says({"data": {"status": "stopped", "exitstatus": status}}), Says({"data": lines})


def test_a_task_is_awaited_through_an_outage_of_the_api(asked: Ask) -> None:
    running = Says({"data": {"status": "running"}})
    hypervisor, server = asked(OK, running, SILENCE, PASSING["away"], ENDED)
    hypervisor.start(111)
    assert len(server.asked) == 5


def test_a_task_without_an_end_has_a_deadline(asked: Ask) -> None:
    hypervisor, _ = asked(OK, Says({"data": {"status": "running"}}))
    with pytest.raises(HypervisorError, match=r"task UPID:pve:.* not so after 0 s; last seen: running; .*task list of"):
        hypervisor.task("post", "qemu/111/status/start", timeout_s=0.3)


def test_a_task_that_fails_is_told_in_its_own_words(asked: Ask) -> None:
    hypervisor, _ = asked(OK, *failed("no space left", "lvcreate", "TASK ERROR"))
    with pytest.raises(HypervisorError, match=r"failed: no space left \(lvcreate; TASK ERROR\)"):
        hypervisor.start(111)


def test_a_task_that_only_warns_has_ended_well(asked: Ask) -> None:
    hypervisor, _ = asked(OK, Says({"data": {"status": "stopped", "exitstatus": "WARNINGS: 1"}}))
    hypervisor.start(111)


@pytest.mark.parametrize(
    ("status", "log"),
    [
        ("can't lock file '/var/lock/qemu-server/lock-111.conf' - got timeout", ("trying to acquire lock...",)),
        ("clone failed: can't lock file '/var/lock/pve-manager/pve-storage-local-lvm' - got timeout", ()),
        ("VM is locked (backup)", ()),
        ("cfs-lock 'storage-nas' error: got lock request timeout", ()),
        ("unexpected status", ("trying to acquire lock...",)),
        ("unexpected status", ("trying to acquire cfs lock 'storage-nas' ...",) * 2),
        ("unexpected status", ("trying to acquire lock... OK", "trying to acquire cfs lock 'storage-nas' ...")),
    ],
)
def test_a_task_that_did_not_get_a_lock_is_begun_again(asked: Ask, status: str, log: tuple[str, ...]) -> None:
    hypervisor, server = asked(OK, *failed(status, *log), OK, ENDED)
    hypervisor.task("post", "qemu/9000/clone", newid=111)
    assert [line.split()[0] for line in server.asked] == ["POST", "GET", "GET", "POST", "GET"]


def test_a_machine_is_settled_when_nothing_is_under_way_for_it(asked: Ask) -> None:
    """Proxmox VE lists what has just ended among what is active."""
    under_way, over = {"upid": UPID}, {"upid": UPID, "endtime": 1, "status": "OK"}
    hypervisor, server = asked(Says({"data": [under_way]}), Says({"data": [over]}))
    hypervisor.settle(111)
    assert [line.endswith("/tasks") for line in server.asked] == [True, True]


@pytest.mark.parametrize(
    "log",
    [
        (),
        ("VM quit/powerdown failed - got timeout",),
        ("trying to acquire lock...", " OK", "VM quit/powerdown failed - got timeout"),
        ("trying to acquire lock...OK", "VM quit/powerdown failed - got timeout"),
        ("trying to acquire cfs lock 'domain-ha' ...", "trying to acquire cfs lock 'domain-ha' ...", " OK"),
    ],
)
def test_a_guest_that_does_not_shut_down_is_told_at_once(asked: Ask, log: tuple[str, ...]) -> None:
    hypervisor, server = asked(OK, *failed("VM quit/powerdown failed - got timeout", *log), OK, ENDED)
    with pytest.raises(HypervisorError, match="failed: VM quit/powerdown failed - got timeout"):
        hypervisor.shutdown(111)
    assert [line.split()[0] for line in server.asked] == ["POST", "GET", "GET"]


# What is no answer of Proxmox VE


@pytest.mark.parametrize(
    "body", [b"<html>login</html>", b"[]", b"null", b'{"data": 3}', b'{"data": [1]}', b"", b"\xff", b'{"data": null}']
)
def test_what_is_no_answer_of_proxmox_is_told_as_such(asked: Ask, body: bytes) -> None:
    hypervisor, _ = asked(Says(body))
    for call in (hypervisor.version, hypervisor.vms, lambda: hypervisor.config(111), lambda: hypervisor.start(111)):
        with pytest.raises(HypervisorError, match=r"that is not Proxmox VE's; check hypervisor.api_url"):
            call()
