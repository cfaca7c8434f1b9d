"""The emulated edge on loopback, as the lab starts it, with an origin and connectors: for tests."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from environments.load import find, load
from environments.model import Environment
from lab import credentials
from provisioning.account import Account
from provisioning.poll import NotYet, poll
from provisioning.public import PublicHost
from tests.served import served

CHECKOUT = Path(__file__).parent.parent


@dataclass
class Origin:
    """A web server behind the tunnel, which tells what it was asked; `/slow` takes its time, `/cut` breaks off."""

    asked: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Serve on loopback; gives HOST:PORT."""
        origin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = {"method": self.command, "path": self.path, "headers": headers, "body": body.decode()}
                origin.asked.append(asked)
                if self.path == "/slow":
                    time.sleep(0.5)  # the origin's own slowness
                told = json.dumps(asked).encode()
                self.send_response(404 if self.path == "/missing" else 200)
                self.send_header("Content-Length", str(len(told) + (100 if self.path == "/cut" else 0)))
                self.send_header("Set-Cookie", "one=1")
                self.send_header("Set-Cookie", "two=2")
                self.end_headers()
                self.wfile.write(told)
                self.close_connection = self.path == "/cut"

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        with served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
            yield f"127.0.0.1:{server.server_address[1]}"


@dataclass
class LiveEdge:
    """A running edge: its state, and where its three doors are."""

    state: Path
    public_port: int
    api_port: int
    tunnel_port: int

    @property
    def ca(self) -> str:
        """The certificate that signs its own."""
        return str(self.state / "edge/pve-root-ca.pem")

    @cached_property
    def environment(self) -> Environment:
        """The lab's environment, with this edge for its own."""
        return self.described()

    def described(self, **changes: Any) -> Environment:
        """That environment with an edge that differs in `changes`."""
        lab = load(find("lab"))
        edge = lab.edge.model_dump() | {
            "api_url": f"https://127.0.0.1:{self.api_port}/client/v4",
            "ca": self.ca,
            "resolve": "127.0.0.1",
            "proxy": None,
            "api_token": f"file:{self.state}/cloudflare-token",
            "mailbox": {
                "url": f"https://127.0.0.1:{self.api_port}/mailbox",
                "token": f"file:{self.state}/mailbox-token",
            },
            **changes,
        }
        return lab.model_copy(update={"edge": type(lab.edge).model_validate(edge)})

    @property
    def public(self) -> PublicHost:
        """The public host as visitors reach it here."""
        return PublicHost(self.environment.edge.public_host, "127.0.0.1", self.ca, self.public_port)

    @contextmanager
    def connector(self, token: str) -> Iterator["subprocess.Popen[str]"]:
        """A connector that has dialled in, or has ended."""
        variables = {**os.environ, "TUNNEL_TOKEN": token, "TUNNEL_EDGE": f"127.0.0.1:{self.tunnel_port}"}
        command = [sys.executable, "-m", "lab.edge.connector", "--no-autoupdate", "tunnel", "run"]
        with subprocess.Popen(command, cwd=CHECKOUT, env=variables, stdout=subprocess.PIPE, text=True) as process:
            account = Account(self.environment)

            def settled() -> bool:
                tunnel = account.tunnel()
                if process.poll() is None and not (tunnel and tunnel.connected):
                    raise NotYet("it has not dialled in")
                return True

            try:
                poll("the connector", settled, timeout_s=15, interval_s=0.05)
                yield process
            finally:
                process.terminate()


@contextmanager
def live_edge(folder: Path) -> Iterator[LiveEdge]:
    """An edge with an empty account."""
    credentials.ensure(folder)
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    descriptors = [one.fileno() for one in listening]
    ports = [one.getsockname()[1] for one in listening]
    command = [sys.executable, "-m", "lab.edge", "serve", "--state", str(folder), "--fds", *map(str, descriptors)]
    with subprocess.Popen(command, cwd=CHECKOUT, pass_fds=descriptors, stdout=subprocess.DEVNULL) as process:
        for one in listening:
            one.close()
        edge = LiveEdge(folder, *ports)

        def serving() -> bool:
            if not Path(edge.ca).exists():
                raise NotYet("it has no certificate yet")
            try:
                edge.public.get("/")
            except OSError as error:
                raise NotYet(str(error)) from error
            return True

        try:
            poll("the edge serves", serving, timeout_s=15, interval_s=0.05)
            yield edge
        finally:
            process.kill()  # its account is for one test
