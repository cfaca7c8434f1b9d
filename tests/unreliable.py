"""A server on loopback that answers as it is told: with errors, cut off, late, or with what is no answer at all."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.served import served


@dataclass(frozen=True)
class Says:
    """One answer: `body` is bytes, or what is sent as JSON; `cut_off` sends no more of it than that many bytes.

    `reason` is the status line's, where Proxmox VE tells what is wrong.
    `late` holds it back until the test is over.
    """

    body: Any = None
    status: int = 200
    reason: str = ""
    cut_off: int | None = None
    late: bool = False
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        """What is sent."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


SILENCE = Says(b"", cut_off=0, status=0)  # the connection ends without a byte


class Unreliable(ThreadingHTTPServer):
    """Says each of `script` to one request in turn, and its last to all that follow; keeps what it was asked."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, script: Sequence[Says], tls: tuple[Path, Path] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = list(script)
        self.asked: list[str] = []
        self.over = threading.Event()
        self._guard = threading.Lock()
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def address(self) -> str:
        """`127.0.0.1:PORT`."""
        return f"127.0.0.1:{self.server_address[1]}"

    def next(self, asked: str) -> Says:
        """What is said to the request that has come."""
        with self._guard:
            self.asked.append(asked)
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who hangs up is no news here."""


class _Handler(BaseHTTPRequestHandler):
    server: Unreliable
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        says = self.server.next(f"{self.command} {self.path.partition('?')[0]}")
        if says.late:
            self.server.over.wait(60)
        if says.status:
            self.send_response(says.status, says.reason or None)
            for name, value in {"Content-Type": "application/json", **says.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(says.content)))
            self.end_headers()
            self.wfile.write(says.content[: says.cut_off])
        if says.cut_off is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextmanager
def serving(*script: Says, tls: tuple[Path, Path] | None = None) -> Iterator[Unreliable]:
    """The server, for as long as the block lasts."""
    with served(Unreliable(script, tls)) as server:
        try:
            yield server
        finally:
            server.over.set()
