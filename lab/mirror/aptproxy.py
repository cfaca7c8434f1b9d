"""A caching proxy of Debian archives: what nodes ask for comes from the machine's own apt sources, once."""

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from uuid import uuid4

import httpx
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

log = structlog.get_logger()
ATTEMPTS = 4
# Together shorter than the 30 s after which a node's apt gives up on us.
TIMEOUT = httpx.Timeout(20, connect=5)
# For what we hold a copy of, one that is away is not waited for long, nor asked for each file again.
TIMEOUT_HELD = httpx.Timeout(10, connect=3)
ATTEMPTS_HELD = 2
AWAY_S = 60.0
CHUNK_BYTES = 1 << 18
PARTIAL = ".partial-"
MEDIA_TYPE = "application/octet-stream"


def is_immutable(path: str) -> bool:
    """Whether a file of an archive never changes under its name: packages, and indexes named by their digest. Pure."""
    return path.startswith("pool/") or "/by-hash/" in path


def clean(path: str) -> str:
    """A path inside an archive; raises HTTPException for one that would leave it. Pure."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts:
        raise HTTPException(404, "no such file")
    return "/".join(parts)


class Download:
    """A file on its way into `partial`; whoever asked for it reads along, and the last one closes it."""

    def __init__(self, partial: Path) -> None:
        self.partial = partial
        self.size_bytes: int | None = None
        self.arrived_bytes = 0
        self.modified_s: float | None = None
        self.failure: HTTPException | None = None
        self._file = partial.open("w+b", buffering=0)
        self._holders = 1
        self._answered = self._ended = False
        self._news = asyncio.Event()

    def answered(self, headers: Mapping[str, str]) -> None:
        """Note what the archive says of the file."""
        if not self._answered:
            if "content-length" in headers and "content-encoding" not in headers:
                self.size_bytes = int(headers["content-length"])
            if "last-modified" in headers:
                self.modified_s = parsedate_to_datetime(headers["last-modified"]).timestamp()
            self._answered = True
            self._tell()

    def write(self, chunk: bytes) -> None:
        """Add what arrived; raises OSError when there is no room."""
        view = memoryview(chunk)
        while view:
            written = self._file.write(view)
            self.arrived_bytes += written
            view = view[written:]
        self._tell()

    def sync(self) -> None:
        """Put it on disk, so that a name never leads to less than the file."""
        os.fsync(self._file.fileno())

    def end(self, failure: HTTPException | None = None) -> None:
        """Tell the readers that no more comes, and drop what was not kept."""
        self.partial.unlink(missing_ok=True)
        self.failure, self._ended = failure, True
        self._tell()
        self._leave()

    async def begun(self) -> None:
        """Wait until the archive has answered; raises HTTPException when it does not have or give the file."""
        while not (self._answered or self._ended):
            await self._news.wait()
        if self.failure:
            raise self.failure

    def follow(self) -> AsyncIterator[bytes]:
        """The file's bytes as they arrive; raises HTTPException where they end too early."""
        self._holders += 1
        return self._follow(self._file)

    async def _follow(self, file: BinaryIO) -> AsyncIterator[bytes]:
        offset = 0
        try:
            while True:
                news, ended = self._news, self._ended
                if chunk := os.pread(file.fileno(), CHUNK_BYTES, offset):
                    offset += len(chunk)
                    yield chunk
                elif self.failure:
                    raise self.failure
                elif ended:
                    return
                else:
                    await news.wait()
        finally:
            self._leave()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _leave(self) -> None:
        self._holders -= 1
        if not self._holders:
            self._file.close()


@dataclass
class Archive:
    """One suite's archive, proxied from `upstream` (ends in a slash) into `folder`."""

    upstream: str
    folder: Path
    client: httpx.AsyncClient
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)
    _downloads: dict[str, tuple[Download, asyncio.Task[None]]] = field(default_factory=dict)
    _away_until: float = 0.0

    async def serve(self, request: Request) -> Response:
        """Answer a request for `request.path_params["path"]`, from the cache where that may be done."""
        path = clean(request.path_params["path"])
        local = self.folder / path
        if not is_immutable(path):
            async with self._locks.setdefault(path, asyncio.Lock()):
                await self._refresh(path, local)
        # Two nodes that ask for one package make one download, and neither waits for its end.
        elif download := self._download_of(path, local):
            await download.begun()
            headers = {} if download.size_bytes is None else {"content-length": str(download.size_bytes)}
            return StreamingResponse(download.follow(), headers=headers, media_type=MEDIA_TYPE)
        return FileResponse(local, media_type=MEDIA_TYPE)

    def _download_of(self, path: str, local: Path) -> Download | None:
        """The download of `path` that is under way, or a new one; None when the file is in the cache."""
        if under_way := self._downloads.get(path):
            return under_way[0]
        if local.is_file():
            return None
        download = _begin(local)
        self._downloads[path] = download, asyncio.create_task(self._receive(path, local, download))
        return download

    async def _receive(self, path: str, local: Path, download: Download) -> None:
        """Bring the whole of `path` to `local`, going on where the archive broke off."""
        failure: HTTPException | None = HTTPException(503, "the mirror ended")
        try:
            await self._insist(path, lambda: self._append(path, download), ATTEMPTS)
            await _keep(download, local)
            failure = None
        except HTTPException as error:
            failure = error
        finally:
            del self._downloads[path]
            download.end(failure)

    async def _append(self, path: str, download: Download) -> None:
        have = download.arrived_bytes
        headers = {"Range": f"bytes={have}-"} if have else {}
        async with self.client.stream("GET", self.upstream + path, headers=headers) as reply:
            reply.raise_for_status()
            known = 0 if reply.status_code == httpx.codes.PARTIAL_CONTENT else have
            await _pour(reply, download, known)

    async def _refresh(self, path: str, local: Path) -> None:
        """Fetch `path` unless the copy at `local` is as new; an archive that is away leaves the copy as it is."""
        headers = _condition(local)
        if headers and time.monotonic() < self._away_until:
            return
        patience, attempts = (TIMEOUT_HELD, ATTEMPTS_HELD) if headers else (TIMEOUT, ATTEMPTS)
        try:
            await self._insist(path, lambda: self._replace(path, local, headers, patience), attempts)
        except HTTPException as error:
            if not headers or error.status_code != httpx.codes.GATEWAY_TIMEOUT:
                raise
            self._away_until = time.monotonic() + AWAY_S
            log.warning("served from the cache, unchecked", path=path)

    async def _replace(self, path: str, local: Path, headers: Mapping[str, str], patience: httpx.Timeout) -> None:
        async with self.client.stream("GET", self.upstream + path, headers=headers, timeout=patience) as reply:
            if reply.status_code == httpx.codes.NOT_MODIFIED:
                return
            reply.raise_for_status()
            download = _begin(local)
            try:
                await _pour(reply, download, 0)
                await _keep(download, local)
            finally:
                download.end()

    async def _insist(self, path: str, attempt: Callable[[], Awaitable[None]], attempts: int) -> None:
        """Call `attempt` until the archive answers; raises HTTPException: 504, or the archive's own refusal."""
        for number in range(1, attempts + 1):
            try:
                return await attempt()
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
                if status is not None and status < 500:
                    raise HTTPException(status, f"{self.upstream}{path}: {status}") from error
                log.warning("archive does not answer", path=path, attempt=number, error=str(error) or repr(error))
                if number == attempts:
                    raise HTTPException(504, f"the archive did not answer: {path}") from error
            await asyncio.sleep(number)
        return None


@contextmanager
def _room(path: Path) -> Iterator[None]:
    """Turn a full disk into an answer that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"no room for {path.name} in {path.parent}; free some, or run `python -m lab cache prune`"
        log.error("no room", path=str(path))
        raise HTTPException(507, message) from error


def _begin(local: Path) -> Download:
    with _room(local):
        local.parent.mkdir(parents=True, exist_ok=True)
        return Download(local.with_name(f"{PARTIAL}{local.name}.{uuid4().hex[:8]}"))


async def _pour(reply: httpx.Response, download: Download, known_bytes: int) -> None:
    """Add the body of `reply` to the download, but for its first `known_bytes`."""
    download.answered(reply.headers)
    async for chunk in reply.aiter_bytes():
        with _room(download.partial):
            download.write(chunk[known_bytes:])
        known_bytes = max(0, known_bytes - len(chunk))


async def _keep(download: Download, local: Path) -> None:
    """Give the whole file its name."""
    with _room(local):
        await asyncio.to_thread(download.sync)
        if download.modified_s is not None:
            os.utime(download.partial, (download.modified_s, download.modified_s))
        download.partial.replace(local)


def _condition(local: Path) -> dict[str, str]:
    """The request header that asks for a newer file only, when there is one."""
    if not local.is_file():
        return {}
    return {"If-Modified-Since": format_datetime(datetime.fromtimestamp(local.stat().st_mtime, UTC), usegmt=True)}


def clear_partial(folder: Path) -> None:
    """Remove what a mirror that was killed had begun to fetch, unless it is younger than an hour: it may live."""
    for path in folder.rglob(f"{PARTIAL}*"):
        if time.time() - path.stat().st_mtime > 3600:
            path.unlink(missing_ok=True)
