"""The connector: dials out to the edge and hands what comes through the tunnel to the origin.

Has the command line of `cloudflared tunnel run`, and runs on a machine of the lab, with Debian's Python and its
python3-websockets. It is not cloudflared, and says so.
"""

import argparse
import asyncio
import http.client
import json
import logging
import os
import ssl
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import websockets

from . import ADDRESS, TUNNEL_PORT
from .frames import CHUNK, DATA, END, HEAD, RESET, pack, passed_on, unpack

VERSION = "cloudflared emulated by the haproof lab"
UNAUTHORIZED = 4401
# cloudflared's own: connectTimeout; after that the edge's patience counts. A request waits for no other.
CONNECT_TIMEOUT_S, ORIGIN_TIMEOUT_S = 30, 90
REQUESTS_MAX = 1000
RETRY_S, RETRY_MAX_S = 0.5, 8.0


Answer = Callable[[int, bytes], None]


def trusted() -> ssl.SSLContext:
    """TLS without a look at the certificate: the network is sealed, and what proves anything is the token."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def ask(head: dict[str, Any], body: bytes, answer: Answer) -> None:
    """Ask the origin, in a thread of its own, and pass its answer on by `answer(kind, data)`."""
    service = urlsplit(head["service"])
    connection = http.client.HTTPConnection(service.hostname, service.port or 80, timeout=CONNECT_TIMEOUT_S)
    try:
        connection.connect()
        connection.sock.settimeout(ORIGIN_TIMEOUT_S)
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
        connection.close()


async def serve(socket: Any) -> None:
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
                loop.run_in_executor(pool, ask, head, bytes(body), answering(stream))
    finally:
        pool.shutdown(wait=False)


async def run(token: str, edge: str) -> int:
    """Stay connected to `edge`, HOST:PORT; the exit code when it will not have this token."""
    delay_s = RETRY_S
    code: int | None
    while True:
        try:
            async with websockets.connect(
                f"wss://{edge}/tunnel", ssl=trusted(), max_size=None, ping_interval=3, ping_timeout=6
            ) as socket:
                await socket.send(token)
                logging.info("connected to the edge")
                delay_s = RETRY_S
                await serve(socket)
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
