"""The connector: dials out to the edge and hands what comes through the tunnel to the origin.

Has the command line of `cloudflared tunnel run`, and runs on a machine of the lab, with Debian's Python and its
python3-websockets. It is not cloudflared, and says so.
"""

import argparse
import asyncio
import errno
import http.client
import itertools
import json
import logging
import os
import random
import ssl
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import SplitResult, urlsplit

import websockets

from . import ADDRESS, TUNNEL_PORT
from .frames import CHUNK, DATA, END, HEAD, RESET, pack, passed_on, unpack

VERSION = "cloudflared emulated by the haproof lab"
UNAUTHORIZED = 4401
# cloudflared's own: connectTimeout; after that the edge's patience counts. A request waits for no other.
CONNECT_TIMEOUT_S, ORIGIN_TIMEOUT_S = 30, 90
REQUESTS_MAX = 1000
RETRY_S, RETRY_MAX_S = 0.5, 8.0
SOURCE_PORTS = range(10_000, 32_768)  # below those that the kernel picks


Answer = Callable[[int, bytes], None]


def trusted() -> ssl.SSLContext:
    """TLS without a look at the certificate: the network is sealed, and what proves anything is the token."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def connected(service: SplitResult, ports: Iterator[int]) -> http.client.HTTPConnection:
    """A connection to the origin from the next port that is free.

    cloudflared keeps connections and uses them again; here each request has its own. From a port that comes back within
    two minutes, one would be sent after an earlier one to a machine that is gone (see chaos.probe.source_ports).
    """
    for port in ports:
        connection = http.client.HTTPConnection(
            service.hostname or "", service.port or 80, timeout=CONNECT_TIMEOUT_S, source_address=("", port)
        )
        try:
            connection.connect()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            raise
        connection.sock.settimeout(ORIGIN_TIMEOUT_S)
        return connection
    raise OSError("no port is free")


def ask(head: dict[str, Any], body: bytes, answer: Answer, ports: Iterator[int]) -> None:
    """Ask the origin, in a thread of its own, and pass its answer on by `answer(kind, data)`."""
    service = urlsplit(head["service"])
    connection: http.client.HTTPConnection | None = None
    try:
        connection = connected(service, ports)
        connection.putrequest(head["method"], head["path"], skip_host=True, skip_accept_encoding=True)
        for name, value in head["headers"]:
            connection.putheader(name, value)
        if body or head["method"] in ("POST", "PUT", "PATCH"):
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        reply = connection.getresponse()
        told = {"status": reply.status, "headers": passed_on(reply.getheaders())}
        answer(HEAD, json.dumps(told).encode())
        while data := reply.read1(CHUNK):
            answer(DATA, data)
        answer(END, b"")
    except (OSError, http.client.HTTPException) as error:
        logging.warning("the origin %s does not answer: %s", service.netloc, error)
        answer(RESET, b"the origin does not answer")
    finally:
        if connection is not None:
            connection.close()


async def serve(socket: Any, ports: Iterator[int]) -> None:
    """Answer what comes through one connection, many requests at a time, until it ends."""
    loop = asyncio.get_running_loop()
    requests: dict[int, tuple[dict[str, Any], bytearray]] = {}
    pool = ThreadPoolExecutor(REQUESTS_MAX)

    def answering(stream: int) -> Answer:
        def answer(kind: int, data: bytes) -> None:
            asyncio.run_coroutine_threadsafe(socket.send(pack(stream, kind, data)), loop).result()

        return answer

    try:
        async for message in socket:
            stream, kind, data = unpack(message)
            if kind == HEAD:
                requests[stream] = (json.loads(data), bytearray())
            elif kind == DATA and stream in requests:
                requests[stream][1].extend(data)
            elif kind == END and stream in requests:
                head, body = requests.pop(stream)
                loop.run_in_executor(pool, ask, head, bytes(body), answering(stream), ports)
    finally:
        pool.shutdown(wait=False)


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
                f"wss://{edge}/tunnel", ssl=trusted(), max_size=None, ping_interval=3, ping_timeout=6
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
