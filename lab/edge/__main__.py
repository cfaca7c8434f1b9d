"""`python -m lab.edge serve`: the API, the edge and its tunnels, on sockets that listen already, until told to end."""

import argparse
import asyncio
import contextlib
import signal
import socket
from pathlib import Path
from typing import Any

import structlog
import uvicorn

from lab import certificates
from lab.edge import HOSTS
from lab.edge.access import Logins
from lab.edge.api import MAILBOX, create_api
from lab.edge.mailbox import Mailbox
from lab.edge.public import Edge
from lab.edge.store import Store
from lab.edge.tunnel import Tunnels

EVERY_SCOPE = frozenset({"tunnel", "dns", "access"})


def tokens(state: Path) -> dict[str, frozenset[str]]:
    """Every API token with its scopes: the lab's own one may do all; others lie in `tokens`, `TOKEN SCOPE…` a line."""
    found = {
        (state / "cloudflare-token").read_text().strip(): EVERY_SCOPE,
        (state / "mailbox-token").read_text().strip(): frozenset({MAILBOX}),
    }
    others = state / "edge" / "tokens"
    if others.exists():
        rows = (line.split() for line in others.read_text().splitlines() if line.strip())
        found |= {row[0]: frozenset(row[1:]) for row in rows}
    return found


async def serve(state: Path, public: socket.socket, api: socket.socket, tunnel: socket.socket) -> None:
    """Serve the three until SIGTERM or SIGINT."""
    folder = state / "edge"
    store, mailbox, logins = Store(folder), Mailbox(), Logins()
    tunnels = Tunnels(store)
    own = {str(listening.getsockname()[0]) for listening in (public, api, tunnel)}
    certificate, key, _ = certificates.ensure(folder, sorted(own.union(HOSTS)))
    served: list[tuple[Any, socket.socket]] = [
        (Edge(store, tunnels, mailbox, logins).application(), public),
        (create_api(store, mailbox, logins, lambda: tokens(state), tunnels.connections), api),
        (tunnels.application(), tunnel),
    ]
    servers = [
        (
            uvicorn.Server(
                uvicorn.Config(
                    app,
                    lifespan="off",
                    log_level="warning",
                    access_log=False,
                    server_header=False,
                    proxy_headers=False,  # what visitors say of themselves is not to be believed
                    ssl_certfile=certificate,
                    ssl_keyfile=key,
                    ws_max_size=1 << 26,
                    ws_ping_interval=3,
                    ws_ping_timeout=6,
                    timeout_graceful_shutdown=1,
                )
            ),
            listening,
        )
        for app, listening in served
    ]

    def end() -> None:
        for server, _ in servers:
            server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    with contextlib.ExitStack() as quiet:
        for server, _ in servers:
            # Each server would take the signals for itself.
            quiet.callback(setattr, server, "capture_signals", contextlib.nullcontext)
            server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        structlog.get_logger().info("the edge serves")
        await asyncio.gather(*(server.serve(sockets=[listening]) for server, listening in servers))


def main() -> None:
    """Serve on the sockets whose descriptors are given."""
    parser = argparse.ArgumentParser(prog="python -m lab.edge")
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--fds", type=int, nargs=3, required=True, metavar=("PUBLIC", "API", "TUNNEL"))
    arguments = parser.parse_args()
    public, api, tunnel = (socket.socket(fileno=fd) for fd in arguments.fds)
    asyncio.run(serve(arguments.state, public, api, tunnel))


if __name__ == "__main__":
    main()
