"""A caching proxy of Debian archives: what nodes ask for comes from the machine's own apt sources, once."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path, PurePosixPath
from uuid import uuid4

import anyio
import httpx
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response

log = structlog.get_logger()
ATTEMPTS = 4
TIMEOUT = httpx.Timeout(60, connect=15)


def is_immutable(path: str) -> bool:
    """Whether a file of an archive never changes under its name: packages, and indexes named by their digest. Pure."""
    return path.startswith("pool/") or "/by-hash/" in path


def clean(path: str) -> str:
    """A path inside an archive; raises HTTPException for one that would leave it. Pure."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts:
        raise HTTPException(404, "no such file")
    return "/".join(parts)


@dataclass
class Archive:
    """One suite's archive, proxied from `upstream` (ends in a slash) into `folder`."""

    upstream: str
    folder: Path
    client: httpx.AsyncClient
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    async def serve(self, request: Request) -> Response:
        """Answer a request for `request.path_params["path"]`, from the cache where that may be done."""
        path = clean(request.path_params["path"])
        local = self.folder / path
        # Two nodes that ask for one file make one download: the second finds it in the cache.
        async with self._locks.setdefault(path, asyncio.Lock()):
            if not (is_immutable(path) and await anyio.Path(local).is_file()):
                await self._refresh(path, local)
        return FileResponse(local, media_type="application/octet-stream")

    async def _refresh(self, path: str, local: Path) -> None:
        """Fetch `path` unless the copy at `local` is as new; an archive that is away leaves the copy as it is."""
        headers = {}
        held = await anyio.Path(local).is_file()
        if held:
            modified = datetime.fromtimestamp((await anyio.Path(local).stat()).st_mtime, UTC)
            headers["If-Modified-Since"] = format_datetime(modified, usegmt=True)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._fetch(path, local, headers)
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
                if status is not None and status < 500:
                    raise HTTPException(status, f"{self.upstream}{path}: {status}") from error
                log.warning("archive does not answer", path=path, attempt=attempt, error=str(error) or repr(error))
                if attempt == ATTEMPTS:
                    if held:
                        log.warning("served from the cache, unchecked", path=path)
                        return
                    raise HTTPException(504, f"the archive did not answer: {path}") from error
                await asyncio.sleep(attempt)
            else:
                return

    async def _fetch(self, path: str, local: Path, headers: Mapping[str, str]) -> None:
        async with self.client.stream("GET", self.upstream + path, headers=headers) as reply:
            if reply.status_code == httpx.codes.NOT_MODIFIED:
                return
            reply.raise_for_status()
            local.parent.mkdir(parents=True, exist_ok=True)
            partial = local.with_name(f".{local.name}.{uuid4().hex[:8]}")
            try:
                await _write(partial, reply.aiter_bytes())
                if modified := reply.headers.get("last-modified"):
                    stamp = parsedate_to_datetime(modified).timestamp()
                    os.utime(partial, (stamp, stamp))
                partial.replace(local)
            finally:
                partial.unlink(missing_ok=True)


async def _write(path: Path, chunks: AsyncIterator[bytes]) -> None:
    with path.open("wb") as file:
        async for chunk in chunks:
            file.write(chunk)
