"""The connector: dials out to the edge and hands what comes through the tunnel to the origin.

Has the command line of `cloudflared tunnel run`, and runs on a machine of the lab, with Debian's Python, its
python3-websockets and python3-h11. It is not cloudflared, and says so.
"""

import argparse
import asyncio
import contextlib
import errno
import itertools
import json
import logging
import os
import random
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import SplitResult, urlsplit

import h11
import websockets

from . import ADDRESS, TUNNEL_PORT
from .frames import CHUNK, DATA, END, HEAD, RESET, pack, passed_on, unpack

VERSION = "cloudflared emulated by the haproof lab"
UNAUTHORIZED = 4401
# cloudflared's own: connectTimeout; after that the edge's patience counts. A request waits for no other.
CONNECT_TIMEOUT_S, ORIGIN_TIMEOUT_S = 30, 90
REQUESTS_MAX = 1000
HEAD_MAX = 65536
RETRY_S, RETRY_MAX_S = 0.5, 8.0
SOURCE_PORTS = range(10_000, 32_768)  # below those that the kernel picks


Answer = Callable[[int, bytes], Awaitable[None]]


def trusted() -> ssl.SSLContext:
    """TLS without a look at the certificate: the network is sealed, and what proves anything is the token."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def connected(service: SplitResult, ports: Iterator[int]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the origin from the next port that is free.

    cloudflared keeps connections and uses them again; here each request has its own. From a port that comes back within
    two minutes, one would be sent after an earlier one to a machine that is gone (see chaos.probe.source_ports).
    """
    for port in ports:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await asyncio.open_connection(service.hostname, service.port or 80, local_addr=("0.0.0.0", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError("no port is free")


async def asked(
    head: dict[str, Any], body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> AsyncIterator[h11.Event]:
    """Ask the origin; what it answers, event by event, to the end of it; raises OSError and h11.ProtocolError."""
    origin = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_MAX)
    headers = [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in head["headers"]
        if name.lower() != "content-length"
    ]
    if body or head["method"] in ("POST", "PUT", "PATCH"):
        headers.append((b"Content-Length", str(len(body)).encode()))
    request = h11.Request(method=head["method"], target=head["path"], headers=headers)
    for event in (request, h11.Data(data=body), h11.EndOfMessage()):
        writer.write(origin.send(event) or b"")
    await writer.drain()
    while True:
        told = origin.next_event()
        if isinstance(told, h11.Event):
            yield told
            if isinstance(told, h11.EndOfMessage):
                return
        elif told is h11.NEED_DATA:
            async with asyncio.timeout(ORIGIN_TIMEOUT_S):
                origin.receive_data(await reader.read(CHUNK))
        else:
            raise h11.RemoteProtocolError("it would go on in another protocol")


async def ask(head: dict[str, Any], body: bytes, answer: Answer, ports: Iterator[int]) -> None:
    """Ask the origin, and pass its answer on by `answer(kind, data)`."""
    service = urlsplit(head["service"])
    writer: asyncio.StreamWriter | None = None
    try:
        reader, writer = await connected(service, ports)
        async for event in asked(head, body, reader, writer):
            if isinstance(event, h11.Response):
                named = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers.raw_items()]
                told = {"status": event.status_code, "headers": passed_on(named)}
                await answer(HEAD, json.dumps(told).encode())
            elif isinstance(event, h11.Data):
                await answer(DATA, bytes(event.data))
        await answer(END, b"")
    except (OSError, h11.ProtocolError) as error:
        logging.warning("the origin %s does not answer: %s", service.netloc, error)
        await answer(RESET, b"the origin does not answer")
    finally:
        if writer is not None:
            writer.close()


async def serve(socket: Any, ports: Iterator[int]) -> None:
    """Answer what comes through one connection, many requests at a time, until it ends."""
    requests: dict[int, tuple[dict[str, Any], bytearray]] = {}
    under_way: set[asyncio.Task[None]] = set()
    free = asyncio.Semaphore(REQUESTS_MAX)

    async def handle(stream: int, head: dict[str, Any], body: bytes) -> None:
        # All in one thread, in turns: of threads that want the interpreter at once, none would come to its end before
        # nearly all do, and what has piled up while the origin was away would hold back what comes after it.
        async def answer(kind: int, data: bytes) -> None:
            await socket.send(pack(stream, kind, data))

        with contextlib.suppress(websockets.ConnectionClosed):  # who asked has heard of it from the edge
            async with free:
                await ask(head, body, answer, ports)

    try:
        async for message in socket:
            stream, kind, data = unpack(message)
            if kind == HEAD:
                requests[stream] = (json.loads(data), bytearray())
            elif kind == DATA and stream in requests:
                requests[stream][1].extend(data)
            elif kind == END and stream in requests:
                head, body = requests.pop(stream)
                task = asyncio.create_task(handle(stream, head, bytes(body)))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
    finally:
        for task in tuple(under_way):
            task.cancel()


async def run(token: str, edge: str) -> int:
    """Stay connected to `edge`, HOST:PORT; the exit code when it will not have this token."""
    delay_s = RETRY_S
    code: int | None
    # A cycle's next() is atomic; a connector that is started anew begins elsewhere.
    first = random.randrange(len(SOURCE_PORTS))
    ports = itertools.cycle([*SOURCE_PORTS[first:], *SOURCE_PORTS[:first]])
    while True:
        try:
            async with websockets.connect(
                f"wss://{edge}/tunnel",
                ssl=trusted(),
                max_size=None,
                compression=None,  # neither does cloudflared compress what the origin has not
                ping_interval=3,
                ping_timeout=6,
            ) as socket:
                await socket.send(token)
                logging.info("connected to the edge")
                delay_s = RETRY_S
                await serve(socket, ports)
                code, reason = socket.close_code, socket.close_reason
        except websockets.ConnectionClosed as error:
            code, reason = (error.rcvd.code, error.rcvd.reason) if error.rcvd else (None, "it broke off")
        except (TimeoutError, OSError, websockets.WebSocketException) as error:
            code, reason = None, str(error) or type(error).__name__
        if code == UNAUTHORIZED:
            logging.error("%s; make the tunnel's token anew and give it to this machine", reason)
            return 1
        logging.warning("the connection to the edge is gone: %s", reason or code)
        await asyncio.sleep(delay_s)
        delay_s = min(delay_s * 2, RETRY_MAX_S)


def main() -> int:
    """Read the command line and run."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(prog="cloudflared")
    parser.add_argument("--version", action="version", version=VERSION)
    parser.add_argument("--no-autoupdate", action="store_true", help="accepted: nothing here updates itself")
    parser.add_argument("words", nargs="+", metavar="tunnel run")
    arguments = parser.parse_args()
    token = os.environ.get("TUNNEL_TOKEN", "")
    if arguments.words != ["tunnel", "run"] or not token:
        parser.error("expected `tunnel run`, and the token in the environment variable TUNNEL_TOKEN")
    return asyncio.run(run(token, os.environ.get("TUNNEL_EDGE") or f"{ADDRESS}:{TUNNEL_PORT}"))


if __name__ == "__main__":
    sys.exit(main())
