"""Machines are entered by keys that are pinned; what is secret goes to them by standard input only."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from socket import create_server, socket
from typing import Any
from unittest import mock

import paramiko
import pytest

from environments.load import find, load
from environments.model import Environment, Role
from environments.secret import SecretRef
from lab.supervisor import ensure_ssh_key
from provisioning.action import ActionFailed
from provisioning.database import Database, DatabaseDeclared
from provisioning.kubeadm import ControlPlaneBegun, Kubeadm, NodesJoined
from provisioning.preparation import NodesPrepared
from provisioning.ssh import HostKeyChanged, Shell
from provisioning.state import State
from provisioning.tunnel import Connector

CANARY = "canary-5f0c"


class Server(paramiko.ServerInterface):
    """Lets everybody in and answers every command with `hello`."""

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.common.AUTH_SUCCESSFUL

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.common.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        def answer() -> None:
            channel.send(b"hello\n")
            channel.send_exit_status(0)
            channel.close()

        threading.Thread(target=answer, daemon=True).start()
        return True


class Machine:
    """A machine on loopback whose host key can change, as when somebody else has taken its address."""

    def __init__(self, listening: socket) -> None:
        self.port = listening.getsockname()[1]
        self.key = paramiko.ECDSAKey.generate()
        self._listening = listening
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                transport = paramiko.Transport(connection)
                transport.add_server_key(self.key)
                with suppress(paramiko.SSHException, EOFError):
                    transport.start_server(event=threading.Event(), server=Server())


class ShellOfPort(Shell):
    """A shell whose machines listen on the port of one on loopback."""

    port: int = 0

    def options(self, **instead: str) -> list[str]:
        return super().options(Port=str(type(self).port), **instead)


@pytest.fixture
def machine() -> Iterator[Machine]:
    with create_server(("127.0.0.1", 0)) as listening:
        yield Machine(listening)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """The lab's environment with a key and secrets of the test."""
    ensure_ssh_key(tmp_path / "id_ed25519")
    (tmp_path / "secret").write_text(CANARY)
    held = SecretRef(reference=f"file:{tmp_path}/secret")
    lab = load(find("lab"))
    changes = {
        "ssh": lab.ssh.model_copy(update={"private_key": SecretRef(reference=f"file:{tmp_path}/id_ed25519")}),
        "wordpress": lab.wordpress.model_copy(update={"database_password": held, "admin_password": held}),
        "edge": lab.edge.model_copy(update={"api_token": held}),
    }
    return lab.model_copy(update=changes)


@pytest.fixture
def shell(environment: Environment, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """The way to that machine, which is the first worker."""
    monkeypatch.setattr(ShellOfPort, "port", machine.port)
    worker = environment.machine("srvk8s-worker01").model_copy(
        update={"addresses": {"cluster": IPv4Address("127.0.0.1")}}
    )
    (tmp_path / "state").mkdir()
    return ShellOfPort(environment.model_copy(update={"machines": (worker,)}), State(tmp_path / "state"))


def test_another_host_key_than_the_pinned_one_is_refused_at_once(shell: Shell, machine: Machine) -> None:
    (worker,) = shell.environment.machines
    assert shell.run(worker, "true").stdout == "hello\n"
    pinned = shell.state.known_hosts.read_text()
    machine.key = paramiko.ECDSAKey.generate()
    for enter in (lambda: shell.run(worker, "true"), lambda: shell.wait(worker, 60)):
        with pytest.raises(HostKeyChanged) as raised:
            enter()
        told = str(raised.value)
        assert "srvk8s-worker01 (127.0.0.1) shows another host key" in told
        assert f"ssh-keygen -f {shell.state.known_hosts} -R 127.0.0.1" in told
    assert shell.state.known_hosts.read_text() == pinned


def test_a_key_is_pinned_anew_for_a_machine_whose_disk_is_new(shell: Shell, machine: Machine) -> None:
    (worker,) = shell.environment.machines
    shell.run(worker, "true")
    machine.key = paramiko.ECDSAKey.generate()
    line = shell.state.known_hosts.read_text()
    # `forget` knows machines by their address, as it is where they listen on SSH's own port.
    shell.state.known_hosts.write_text(line.replace(f"[127.0.0.1]:{machine.port}", "127.0.0.1"))
    shell.forget(worker)
    assert shell.state.known_hosts.read_text() == ""
    assert shell.run(worker, "true").exit_code == 0
    assert shell.state.known_hosts.read_text() != line


# -- process lists


class Started:
    """Every process that was started in place of a real one: its arguments, its variables, its standard input."""

    def __init__(self, answer: str = "") -> None:
        self.answer = answer
        self.arguments: list[str] = []
        self.given: list[str] = []

    def __call__(self, command: list[Any], **how: Any) -> Any:
        self.arguments += [*map(str, command), *(how.get("env") or {}).values()]
        self.given.append(how.get("input") or "")
        # No machine has begun to join, so that all do.
        return subprocess.CompletedProcess(command, 0, "" if "ls -d" in self.arguments[-1] else self.answer, "")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    started = Started()
    for place in ("ssh", "preparation"):
        monkeypatch.setattr(f"provisioning.{place}.subprocess.run", started)
    monkeypatch.setattr("provisioning.kubeadm.answers", lambda _: True)
    monkeypatch.setattr("provisioning.kubeadm.secrets.token_hex", lambda _: CANARY)
    return started


@pytest.fixture
def plain(environment: Environment, tmp_path: Path) -> Shell:
    return Shell(environment, State(tmp_path))


def declare_database(shell: Shell) -> None:
    DatabaseDeclared(Database(shell.environment, shell), exist=True).apply()


def try_password(shell: Shell) -> None:
    Database(shell.environment, shell).admits(CANARY)


def ask_as_site(shell: Shell) -> None:
    Database(shell.environment, shell).as_site("SELECT 1")


def begin_control_plane(shell: Shell) -> None:
    ControlPlaneBegun(Kubeadm(shell.environment, shell)).apply()


def join_control_plane(shell: Shell) -> None:
    NodesJoined(Kubeadm(shell.environment, shell), Role.CONTROL_PLANE, "control planes joined").apply()


def join_workers(shell: Shell) -> None:
    NodesJoined(Kubeadm(shell.environment, shell), Role.WORKER, "workers joined").apply()


def start_connector(shell: Shell) -> None:
    Connector(shell.environment, shell).start(CANARY)


# What the machine says to each, whatever it is asked: an account, a row, a release, a digest and a token.
DIGEST = "0" * 64
ANSWERS = {
    declare_database: "root\tlocalhost\tauth_socket",
    try_password: "1",
    ask_as_site: "1",
    begin_control_plane: "v1.30.0",
    join_control_plane: f"{DIGEST}\n{CANARY}",
    join_workers: f"{DIGEST}\n{CANARY}",
    start_connector: "",
}


@pytest.mark.parametrize("act", ANSWERS, ids=lambda act: act.__name__)
def test_a_secret_is_given_by_standard_input_and_in_no_process_list(
    started: Started, plain: Shell, caplog: pytest.LogCaptureFixture, act: Any
) -> None:
    caplog.set_level("DEBUG")
    started.answer = ANSWERS[act]
    act(plain)
    assert any(CANARY in given for given in started.given), "the test gave no secret"
    assert act not in (join_control_plane, join_workers) or any("kubeadm join" in word for word in started.arguments)
    assert [word for word in started.arguments if CANARY in word] == []
    assert CANARY not in caplog.text


def test_a_job_for_machines_holds_no_secret_at_all(
    started: Started, plain: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provisioning.preparation.signing_key", lambda _: "a key")
    started.answer = '{"nodes": {}}'
    NodesPrepared(plain.environment, plain.environment.machines, plain, exist=True).apply()
    assert any("provisioning.nodes" in word for word in started.arguments)
    assert [told for told in (*started.arguments, *started.given) if CANARY in told] == []


def test_what_the_server_quotes_of_a_password_is_not_passed_on(plain: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(plain.environment, plain)
    monkeypatch.setattr(database, "await_ready", lambda: None)
    monkeypatch.setattr(database, "accounts", list)
    monkeypatch.setattr(
        database, "query", mock.Mock(side_effect=ActionFailed("it failed", output=f"near '{CANARY}' at line 4"))
    )
    with pytest.raises(ActionFailed) as raised:
        DatabaseDeclared(database, exist=True).apply()
    assert CANARY not in str(raised.value)
    assert "near" in str(raised.value)
