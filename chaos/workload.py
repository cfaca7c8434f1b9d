"""What editors and programs write while something is broken: rows, posts and files, each under a name of its own.

A process of its own, `python -m chaos.workload FILE`, with the plan on its standard input; the end of that, or
SIGTERM, ends it. Each acknowledgement is on the disk before it counts.
"""

import hashlib
import secrets
import sys
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Annotated, Literal

import pymysql
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from chaos.history import Recorder, Write
from chaos.lifeline import recording
from chaos.sql import connected
from provisioning.wordpress import WordPress, png

PAYLOAD_BYTES = 200


class Writer(BaseModel):
    """Writes one thing every interval; what failed is never tried again."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    interval_s: Annotated[float, Field(gt=0)]
    timeout_s: Annotated[float, Field(gt=0)] = 10.0

    def content(self) -> bytes:
        """What nobody wrote before."""
        return secrets.token_hex(PAYLOAD_BYTES // 2).encode()

    @abstractmethod
    def put(self, name: str, content: bytes) -> None:
        """Return when it is acknowledged; raises whatever keeps it from being."""

    def leave(self) -> None:
        """Drop the connection, in whatever state it is."""


class Rows(Writer):
    """Rows by SQL, over one connection that is made anew when it fails. The table has name, digest and payload."""

    kind: Literal["row"] = "row"
    host: str
    port: int
    user: str
    password: str
    database: str
    table: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    _connection: "pymysql.Connection[pymysql.cursors.Cursor] | None" = PrivateAttr(default=None)

    def put(self, name: str, content: bytes) -> None:
        """One INSERT of its own transaction."""
        if self._connection is None:
            place = (self.host, self.port, self.user, self.password, self.database)
            self._connection = connected(*place, self.timeout_s)
        row = (name, hashlib.sha256(content).hexdigest(), content.decode())
        with self._connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {self.table} VALUES (%s, %s, %s)", row)

    def leave(self) -> None:
        """However it ends."""
        if self._connection is not None:
            with suppress(pymysql.err.Error, OSError):
                self._connection.close()
        self._connection = None


class Login(BaseModel):
    """An editor of the site, logged in until something fails. One for all that write so.

    WordPress keeps an account's sessions in one value: of two logins at once, one is forgotten.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    url: str
    user: str
    password: str
    _visitor: WordPress | None = PrivateAttr(default=None)
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    @property
    def visitor(self) -> WordPress:
        """Logged in; raises as a login does."""
        with self._lock:
            if self._visitor is None:
                visitor = WordPress(self.url)
                visitor.log_in(self.user, self.password)
                self._visitor = visitor
            return self._visitor

    def forget(self) -> None:
        """The next one logs in again."""
        with self._lock:
            self._visitor = None


class Editing(Writer):
    """What an editor does; names carry the drill's mark."""

    mark: str
    _login: Login | None = PrivateAttr(default=None)

    def by(self, login: Login) -> None:
        """Who does it."""
        self._login = login

    @property
    def visitor(self) -> WordPress:
        """Whoever is logged in."""
        assert self._login is not None
        return self._login.visitor

    def leave(self) -> None:
        """What failed may have been the session's fault."""
        if self._login is not None:
            self._login.forget()


class Posts(Editing):
    """Posts over REST."""

    kind: Literal["post"] = "post"

    def put(self, name: str, content: bytes) -> None:
        """Published at once."""
        self.visitor.publish(f"{self.mark}{name}", content.decode(), self.timeout_s)


class Uploads(Editing):
    """Images over REST."""

    kind: Literal["upload"] = "upload"

    def content(self) -> bytes:
        """One pixel, and a name of its own in what follows the image, which nobody reads or touches."""
        return png(secrets.token_bytes(3)) + secrets.token_bytes(PAYLOAD_BYTES)

    def put(self, name: str, content: bytes) -> None:
        """Into the library."""
        self.visitor.upload(f"{self.mark}{name}.png", content, self.timeout_s)


AnyWriter = Annotated[Rows | Posts | Uploads, Field(discriminator="kind")]


class Plan(BaseModel):
    """All writers, and who edits."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    editor: Login
    writers: Annotated[tuple[AnyWriter, ...], Field(min_length=1)]


def write_one(writer: AnyWriter, intended_s: float) -> Write:
    """Write, and tell how it went."""
    content = writer.content()
    name, error = secrets.token_hex(8), ""
    started_s = time.monotonic()
    try:
        writer.put(name, content)
    except Exception as failure:  # noqa: BLE001 - whatever it was, nothing was acknowledged; the history says what
        error = f"{type(failure).__name__}: {failure}"
        writer.leave()
    return Write(
        sort=writer.kind,
        name=name,
        digest=hashlib.sha256(content).hexdigest(),
        intended_s=intended_s,
        started_s=started_s,
        ended_s=time.monotonic(),
        error=error,
    )


def write_all(writer: AnyWriter, record: Callable[[Write], None], stop: threading.Event) -> None:
    """Write every interval until `stop`. What falls due while one waits is not made up for: the wait itself tells.

    Made up for, an hour's silence would end in a storm, and on a slow machine the next write never be due in time.
    """
    due_s = time.monotonic()
    while not stop.wait(max(0.0, due_s - time.monotonic())):
        record(write_one(writer, due_s))
        due_s = max(due_s + writer.interval_s, time.monotonic())


def write_together(writers: Sequence[AnyWriter], record: Callable[[Write], None], stop: threading.Event) -> None:
    """All of them until `stop`. What one raises, as where a write cannot be recorded, ends all, and is raised."""

    def work(writer: AnyWriter) -> None:
        try:
            write_all(writer, record, stop)
        finally:
            stop.set()

    with ThreadPoolExecutor(len(writers)) as pool:
        ends = [pool.submit(work, writer) for writer in writers]
    for end in ends:
        end.result()


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the plan, write until told to end."""

    def write(plan: Plan, ledger: Recorder, stop: threading.Event) -> None:
        for writer in plan.writers:
            if isinstance(writer, Editing):
                writer.by(plan.editor)
        write_together(plan.writers, lambda event: ledger.record(event, durable=True), stop)

    return recording("chaos.workload", __doc__, Plan, write, arguments)


if __name__ == "__main__":
    sys.exit(main())
