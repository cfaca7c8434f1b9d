"""The edge's end of tunnels: connectors that have dialled in, and requests that are sent through them."""

import asyncio
import base64
import hmac
import itertools
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from lab.edge.frames import DATA, END, HEAD, RESET, pack, pack_head, unpack
from lab.edge.store import Store, now

UNAUTHORIZED = 4401  # a websocket's own range of close codes
ANSWER_TIMEOUT_S = 100.0  # as the service: error 524 after that
BEAT_S = 5.0


class NoConnector(Exception):
    """No connector of the tunnel is connected, or the one that was has gone in the middle."""


@dataclass
class Connection:
    """One connector's websocket, with the answers that are awaited through it."""

    socket: WebSocket
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    opened_at: str = field(default_factory=now)
    streams: dict[int, asyncio.Queue[tuple[int, bytes]]] = field(default_factory=dict)
    numbers: Any = field(default_factory=lambda: itertools.count(1))
    sending: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def send(self, message: bytes) -> None:
        """One message; whole, though many send."""
        async with self.sending:
            await self.socket.send_bytes(message)


@dataclass
class Tunnels:
    """Connectors by the tunnel that they serve."""

    store: Store
    connected: dict[str, list[Connection]] = field(default_factory=dict)

    def application(self) -> Starlette:
        """Where connectors dial in."""
        return Starlette(routes=[WebSocketRoute("/tunnel", self._accept)])

    def _tunnel_of(self, token: str) -> str | None:
        """The tunnel that a connector's token is for, while there is such a tunnel."""
        try:
            told = json.loads(base64.b64decode(token))
            found = self.store.get("tunnels", told["t"])
        except (ValueError, KeyError, TypeError):
            return None
        return str(told["t"]) if found and hmac.compare_digest(found["secret"], str(told.get("s", ""))) else None

    def connections(self, tunnel: str) -> list[dict[str, Any]]:
        """A tunnel's connectors as the API tells of them."""
        return [
            {"id": one.id, "client_id": one.id, "opened_at": one.opened_at, "is_pending_reconnect": False}
            for one in self.connected.get(tunnel, ())
        ]

    async def _accept(self, socket: WebSocket) -> None:
        await socket.accept()
        try:
            token = await asyncio.wait_for(socket.receive_text(), BEAT_S)
        except (TimeoutError, WebSocketDisconnect, KeyError, RuntimeError):
            return  # who says nothing, or nothing that is text, is no connector
        tunnel = self._tunnel_of(token)
        if tunnel is None:
            await socket.close(UNAUTHORIZED, "Unauthorized: the tunnel's token is not valid")
            return
        connection = Connection(socket)
        self.connected.setdefault(tunnel, []).append(connection)
        log = structlog.get_logger().bind(tunnel=tunnel)
        log.info("a connector has dialled in")
        try:
            while self._tunnel_of(token) is not None:
                try:
                    async with asyncio.timeout(BEAT_S):  # wait_for would make a task of every message
                        message = await socket.receive_bytes()
                except TimeoutError:
                    continue  # nothing to say; but the tunnel may have been deleted meanwhile
                stream, kind, data = unpack(message)
                if queue := connection.streams.get(stream):
                    queue.put_nowait((kind, data))
            await socket.close(UNAUTHORIZED, "Unauthorized: the tunnel was deleted")
        except (WebSocketDisconnect, ValueError, KeyError, RuntimeError) as error:
            log.info("a connector has gone", cause=str(error))
        finally:
            self.connected[tunnel].remove(connection)
            for queue in connection.streams.values():
                queue.put_nowait((RESET, b"the connector has gone"))

    async def request(
        self, tunnel: str, head: dict[str, Any], body: AsyncIterator[bytes]
    ) -> tuple[dict[str, Any], AsyncIterator[bytes]]:
        """Send a request through a tunnel; gives the answer's head, and its bytes as they come.

        Raises NoConnector, and TimeoutError when the origin says nothing.
        """
        connections = self.connected.get(tunnel)
        if not connections:
            raise NoConnector("no connector is connected")
        connection = connections[-1]
        stream = next(connection.numbers)
        queue: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        connection.streams[stream] = queue
        try:
            await connection.send(pack_head(stream, head))
            async for chunk in body:
                await connection.send(pack(stream, DATA, chunk))
            await connection.send(pack(stream, END))
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                kind, data = await queue.get()
        except (WebSocketDisconnect, RuntimeError) as error:
            del connection.streams[stream]
            raise NoConnector("the connector has gone") from error
        except BaseException:
            del connection.streams[stream]
            raise
        if kind != HEAD:
            del connection.streams[stream]
            raise NoConnector(data.decode(errors="replace"))

        async def answer() -> AsyncIterator[bytes]:
            try:
                while True:
                    kind, data = await queue.get()
                    if kind == DATA:
                        yield data
                    elif kind == END:
                        return
                    else:
                        raise NoConnector(data.decode(errors="replace"))
            finally:
                connection.streams.pop(stream, None)

        return json.loads(data), answer()
