"""The mirror over HTTP: built content as files, Debian through the caching proxy."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from lab.mirror import apt
from lab.mirror.aptproxy import TIMEOUT, Archive, clear_partial


def create_app(content: Path, sources: Sequence[apt.Source], cache: Path) -> Starlette:
    """The application: `content` is laid out as `lab.mirror.content.Assembly` has it.

    `sources` are proxied, their files kept below `cache`.
    """
    client = httpx.AsyncClient(timeout=TIMEOUT, follow_redirects=True, headers={"Accept-Encoding": "identity"})

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await run_in_threadpool(clear_partial, cache)
        async with client:
            yield

    routes: list[Route | Mount] = []
    for source in sources:
        archive = Archive(source.uri, cache / source.suite, client)
        routes.append(Route(f"{apt.path_of(source)}{{path:path}}", archive.serve))
    for name, folder in (("manifests", "manifests"), ("images", "template"), ("licences", "licences")):
        routes.append(Mount(f"/{name}", StaticFiles(directory=content / folder, follow_symlink=True)))
    tops = sorted((content / "packages").iterdir())
    routes += [Mount(f"/{top.name}", StaticFiles(directory=top.resolve())) for top in tops]

    async def index(_: Request) -> Response:
        served = [f"{apt.path_of(source)} (Debian {source.suite}, proxied)" for source in sources]
        served += [
            f"/{release.parent.relative_to(top.parent)}/ (packages)"
            for top in tops
            for release in top.rglob("InRelease")
        ]
        served += ["/images/ (machine image)", "/manifests/"]
        served += [f"/licences/{folder.name}/" for folder in sorted((content / "licences").iterdir())]
        return PlainTextResponse("\n".join(served) + "\n")

    return Starlette(routes=[Route("/", index), Route("/index", index), *routes], lifespan=lifespan)


def serve(app: Starlette, listening: socket.socket) -> None:
    """Serve `app` on a socket that listens already, until told to end by a signal."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listening])
