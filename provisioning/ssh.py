"""Commands on machines, by OpenSSH: host keys pinned at first contact, secrets by standard input only."""

import logging
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from environments.model import Environment, Machine
from provisioning.action import ActionFailed
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.state import State

LOG = logging.getLogger(__name__)
TUNNEL_TIMEOUT_S = 15
CHANGED = "HOST IDENTIFICATION HAS CHANGED"  # how OpenSSH begins its warning


@dataclass(frozen=True)
class Result:
    """The end of a remote command."""

    exit_code: int
    stdout: str
    stderr: str


class Unreachable(ActionFailed):
    """SSH itself failed: no connection, no login, or a host key that is not the pinned one."""


class HostKeyChanged(Unreachable):
    """A machine shows another host key than the pinned one: no waiting mends that, and nothing was sent to it."""


@dataclass(frozen=True)
class Shell:
    """Runs commands on the machines of one environment, as root through sudo."""

    environment: Environment
    state: State

    @property
    def key(self) -> Path:
        """The private key file (the model admits no other reference)."""
        path = self.environment.ssh.private_key.path
        assert path is not None
        return path

    def public_key(self) -> str:
        """The public half of the environment's key, in OpenSSH's one-line form."""
        private = load_ssh_private_key(self.key.read_bytes(), password=None)
        return private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    def options(self, **instead: str) -> list[str]:
        """The options of every connection, for ssh and for what calls it; `instead` of some, or beside them."""
        settings = {
            "UserKnownHostsFile": str(self.state.known_hosts),
            "StrictHostKeyChecking": "accept-new",
            "HashKnownHosts": "no",
            "IdentityFile": str(self.key),
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": "5",
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "6",
            "LogLevel": "ERROR",
            "User": self.environment.ssh.user,
        } | instead
        return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]

    def run(self, machine: Machine, script: str, *, stdin: str = "", timeout_s: float = 300) -> Result:
        """Run `script` by sh as root on `machine` and return how it ended; raises Unreachable.

        What is secret goes into `stdin`, never into `script`: that one shows in the machine's process list.
        """
        address = str(self.environment.address(machine))
        quoted = script.replace("'", "'\\''")
        command = ["ssh", *self.options(), address, f"sudo -n sh -c '{quoted}'"]
        try:
            done = subprocess.run(
                command,
                input=stdin,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
                errors="replace",
            )
        except subprocess.TimeoutExpired as error:
            raise Unreachable(
                f"the command did not end within {timeout_s:.0f} s", machine=machine.name, command=script
            ) from error
        LOG.info("%s: %s (exit code %d)", machine.name, script, done.returncode)
        if done.returncode == 255 and CHANGED in done.stderr:
            raise HostKeyChanged(
                f"{machine.name} ({address}) shows another host key than the one pinned at first contact, so that "
                "nothing was sent to it: somebody else may have its address; if you made the machine anew yourself, "
                f"drop the old key with ssh-keygen -f {self.state.known_hosts} -R {address}",
                machine=machine.name,
                command="ssh",
            )
        if done.returncode == 255:
            raise Unreachable(
                f"{machine.name} ({address}) cannot be entered by SSH as {self.environment.ssh.user}",
                machine=machine.name,
                command="ssh",
                output=done.stderr,
            )
        return Result(done.returncode, done.stdout, done.stderr)

    def check(self, machine: Machine, script: str, *, stdin: str = "", timeout_s: float = 300) -> str:
        """As `run`, for a command that must succeed; returns its standard output, raises ActionFailed."""
        result = self.run(machine, script, stdin=stdin, timeout_s=timeout_s)
        if result.exit_code:
            raise ActionFailed(
                f"a command failed with exit code {result.exit_code}",
                machine=machine.name,
                command=script,
                output=result.stdout + result.stderr,
            )
        return result.stdout

    @contextmanager
    def tunnel(self, machine: Machine, address: str, port: int) -> Iterator[int]:
        """A port on this machine's loopback that leads, through `machine`, to what only it reaches.

        Raises ActionFailed when it does not come to be.
        """
        with socket.create_server(("127.0.0.1", 0)) as probe:
            local = probe.getsockname()[1]
        forward = ["-N", "-L", f"127.0.0.1:{local}:{address}:{port}"]
        options = self.options(ExitOnForwardFailure="yes")
        command = ["ssh", *options, *forward, str(self.environment.address(machine))]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:

            def open_() -> bool:
                if process.poll() is not None:
                    told = process.stderr.read() if process.stderr else ""
                    raise Unreachable("a tunnel ended at once", machine=machine.name, command="ssh -L", output=told)
                with socket.socket() as attempt:
                    return attempt.connect_ex(("127.0.0.1", local)) == 0

            try:
                poll(f"a tunnel through {machine.name}", open_, timeout_s=TUNNEL_TIMEOUT_S, interval_s=0.05)
                yield local
            except DeadlineExceeded as error:
                raise Unreachable(str(error), machine=machine.name, command="ssh -L") from error
            finally:
                process.terminate()

    def forget(self, machine: Machine) -> None:
        """Drop the pinned host key of `machine`, whose disk is new."""
        if self.state.known_hosts.exists():
            address = str(self.environment.address(machine))
            subprocess.run(
                ["ssh-keygen", "-q", "-f", str(self.state.known_hosts), "-R", address],
                check=False,
                capture_output=True,
            )

    def wait(self, machine: Machine, timeout_s: float) -> None:
        """Wait until `machine` can be entered; raises ActionFailed with the last refusal."""

        def entered() -> bool:
            try:
                return self.run(machine, "true", timeout_s=10).exit_code == 0
            except HostKeyChanged:
                raise
            except Unreachable as error:
                raise NotYet(error.output.strip() or error.cause) from error

        try:
            poll(f"SSH on {machine.name}", entered, timeout_s=timeout_s, interval_s=0.3)
        except DeadlineExceeded as error:
            raise ActionFailed(str(error), machine=machine.name, command="ssh") from error
