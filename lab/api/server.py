"""Serves the API over TLS on a socket that is already bound."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from lab.api.answers import REASON_HEADER


class _ReasonConnection(h11.Connection):
    """Puts the message of a refusal into the status line.

    PVE's clients (proxmoxer among them) read an error's message there, and ASGI has no field for it.
    """

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        """Swap header for reason; everything that is sent goes through here."""
        if isinstance(event, h11.Response):
            name = REASON_HEADER.lower().encode()
            reason = next((value for key, value in event.headers if key == name), None)
            if reason is not None:
                headers = [(key, value) for key, value in event.headers if key != name]
                event = h11.Response(status_code=event.status_code, headers=headers, reason=reason)
        return super().send_with_data_passthrough(event)


class _Protocol(H11Protocol):
    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = _ReasonConnection(h11.SERVER)


def serve(app: FastAPI, sock: socket.socket, cert: Path, key: Path) -> uvicorn.Server:
    """A server for `app` on the bound socket `sock`, with PEM files `cert` and `key`.

    The caller runs `server.run(sockets=[sock])`, in a thread if it likes, and ends it by
    `server.should_exit = True`.
    """
    sock.listen(128)
    config = uvicorn.Config(
        app,
        http=_Protocol,
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_certfile=cert,
        ssl_keyfile=key,
        timeout_graceful_shutdown=1,  # idle clients would hold it up for as long as they like
    )
    return uvicorn.Server(config)
