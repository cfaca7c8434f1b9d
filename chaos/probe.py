"""Probes of the target's layers, each at its own steady rate whatever the answers do (open model).

A process of its own, `python -m chaos.probe FILE`, with the questions on its standard input: what the drill is busy
with never delays a question, and what a question holds (a password) is in no process list. The end of that input, or
SIGTERM, ends it.
"""

import errno
import http.client
import os
import select
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import cycle, islice
from typing import Annotated, ClassVar, Literal

import pymysql
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from chaos.history import Probe, Recorder
from chaos.lifeline import recording
from chaos.priority import served_first
from chaos.sql import connected

CHUNK = 4096
IDLE_MAX_S = 1.0
SOURCE_PORTS = range(10_000, 32_768)  # below those that the kernel picks
PORTS_TRIED = 100
PORTS_PER_S = 50  # of one address twenty, of each replica five, and whole pages: all are back in seven minutes


class Question(BaseModel):
    """What one layer is asked, every `interval_s`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    layer: str
    interval_s: Annotated[float, Field(gt=0)] = 0.05
    timeout_s: Annotated[float, Field(gt=0)] = 2.0

    @property
    def at_once(self) -> int:
        """How many may wait when nothing is answered, with some to spare."""
        return int(2 * self.timeout_s / self.interval_s) + 2

    @abstractmethod
    def ask(self) -> None:
        """Return when it is answered; raises OSError and others with the reason why it is not."""

    def leave(self) -> None:
        """Drop what was kept between questions."""


class AtPort(Question):
    """A question to a TCP port."""

    host: str
    port: int


def source_ports(since_epoch_s: float) -> Iterator[int]:
    """Each port in its turn, over and over, from one on that the clock gives. Pure.

    The kernel's own choice comes back to a port within a minute. A connection that went to a machine without power is
    remembered for two (nf_conntrack_tcp_timeout_syn_sent, and as long of one that is being closed), after it was tried
    for the last time; what comes from the same port is sent after it. Visitors have many addresses, and so many ports,
    and do not meet that; all questions come from one address. So nobody asks from a port that was asked from before in
    these minutes, by this process or by an earlier one, as long as no more than PORTS_PER_S are taken.
    """
    first = int(since_epoch_s * PORTS_PER_S) % len(SOURCE_PORTS)
    return cycle([*SOURCE_PORTS[first:], *SOURCE_PORTS[:first]])


class Page(AtPort):
    """A page over HTTP, each time over a new connection: so is a visitor's first."""

    kind: Literal["page"] = "page"
    path: str = "/"
    name: Annotated[str, Field(description="the host that is asked for")] = ""
    # One sequence for all pages that a process asks for. A cycle's next() is atomic.
    _ports: ClassVar[Iterator[int]] = source_ports(time.time())

    def _connected(self) -> socket.socket:
        connection = socket.socket()
        try:
            # The kernel's own time limits: Python's take a call of poll(2) for each other call.
            for limit in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                connection.setsockopt(socket.SOL_SOCKET, limit, self._limit)
            self._bind(connection)
            connection.connect((self.host, self.port))
        except BaseException:
            connection.close()
            raise
        return connection

    @cached_property
    def _limit(self) -> bytes:
        """`timeout_s` as setsockopt(2) takes it, a timeval."""
        return struct.pack("@ll", int(self.timeout_s), int(self.timeout_s % 1 * 1_000_000))

    def _bind(self, connection: socket.socket) -> None:
        for port in islice(self._ports, PORTS_TRIED):
            try:
                return connection.bind(("", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
        raise OSError(f"{PORTS_TRIED} ports in a row are in use on this machine")

    def ask(self) -> None:
        """Any answer but 200 is a failure of its own. The rest of the answer is read as well."""
        # Spoken by hand: http.client takes three times the processor for it, which the target may need.
        ask = f"GET {self.path} HTTP/1.0\r\nHost: {self.name or self.host}\r\nUser-Agent: haproof\r\n\r\n"
        try:
            connection = self._connected()
        except (BlockingIOError, TimeoutError) as error:
            raise TimeoutError("no connection") from error
        with connection:
            try:
                connection.sendall(ask.encode())
                told = connection.recv(CHUNK)
                while part := connection.recv(CHUNK):
                    told += part
            except (BlockingIOError, TimeoutError) as error:
                raise TimeoutError("connected, and no answer") from error
        status = told[:CHUNK].split(maxsplit=2)[1:2]
        if status != [b"200"]:
            raise OSError(f"HTTP {status[0].decode(errors='replace')}" if status else "closed without an answer")


class Kept(AtPort):
    """A question over HTTPS connections that are kept: a handshake costs more than the answer.

    `ca` is a certificate's text; without one the machine's own store is trusted.
    """

    path: str = "/"
    ca: str = ""
    _idle: list[tuple[float, http.client.HTTPSConnection]] = PrivateAttr(default_factory=list)
    _context: ssl.SSLContext | None = PrivateAttr(default=None)

    def send(self, method: str, body: str, headers: dict[str, str], name: str = "") -> int:
        """The answer's status; `name` is the host that the certificate must be for, where not the one connected to."""
        connection = self._waiting() or self._connected(name)
        try:
            connection.request(method, self.path, body or None, headers)
            reply = connection.getresponse()
            reply.read()
        except BaseException:
            connection.close()
            self._idle.clear()  # what was kept beside it has met the same fate
            raise
        if connection.sock is not None:  # else the server ends it, and asked again it would look for another host
            self._idle.append((time.monotonic(), connection))
        return reply.status

    def _waiting(self) -> http.client.HTTPSConnection | None:
        """The connection that was used last, unless a server may have tired of it."""
        try:
            since_s, connection = self._idle.pop()
        except IndexError:
            return None
        if time.monotonic() - since_s < IDLE_MAX_S:
            return connection
        connection.close()
        return None

    def _connected(self, name: str) -> http.client.HTTPSConnection:
        if self._context is None:
            self._context = self._trusted()
        connection = http.client.HTTPSConnection(name or self.host, self.port, context=self._context)
        plain = socket.create_connection((self.host, self.port), self.timeout_s)
        connection.sock = self._context.wrap_socket(plain, server_hostname=name or self.host)
        return connection

    def _trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.ca or None)


class PublicPage(Kept):
    """A page at the public host, which `host` leads to."""

    kind: Literal["public-page"] = "public-page"
    name: str

    def ask(self) -> None:
        """Any answer but 200 is a failure of its own."""
        if (status := self.send("GET", "", {"User-Agent": "haproof"}, self.name)) != http.client.OK:
            raise OSError(f"HTTP {status}")


class Row(AtPort):
    """A row read by SQL; connections are kept and used again, as a site's are not, to ask for the data alone."""

    kind: Literal["row"] = "row"
    user: str
    password: str
    database: str
    query: str
    # A list's own methods are atomic.
    _idle: list["pymysql.Connection[pymysql.cursors.Cursor]"] = PrivateAttr(default_factory=list)

    def ask(self) -> None:
        """A new connection where the last question left none; a failed one is thrown away."""
        try:
            connection = self._idle.pop()
        except IndexError:
            place = (self.host, self.port, self.user, self.password, self.database)
            connection = connected(*place, self.timeout_s)
        try:
            with connection.cursor() as cursor:
                cursor.execute(self.query)
                cursor.fetchall()
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)


class Port(AtPort):
    """A TCP connection that is accepted."""

    kind: Literal["port"] = "port"

    def ask(self) -> None:
        """Connect and leave."""
        socket.create_connection((self.host, self.port), self.timeout_s).close()


class Call(Kept):
    """A request to the Kubernetes API as its administrator; `certificate` and `key` are texts.

    A PUT writes `body`, where `@` stands for the moment: what does not change the object is not written at all. Both
    need etcd's quorum.
    """

    kind: Literal["call"] = "call"
    method: Literal["GET", "PUT"] = "GET"
    body: str = ""
    certificate: str
    key: str

    def ask(self) -> None:
        """Any answer from 400 on is a failure of its own."""
        headers = {"Content-Type": "application/json"} if self.body else {}
        status = self.send(self.method, self.body.replace("@", str(time.monotonic_ns())), headers)
        if status >= http.client.BAD_REQUEST:
            raise OSError(f"HTTP {status}")

    def _trusted(self) -> ssl.SSLContext:
        context = super()._trusted()
        # ssl takes a client's certificate from a file only.
        with tempfile.NamedTemporaryFile("w") as pem:
            pem.write(self.certificate + self.key)
            pem.flush()
            context.load_cert_chain(pem.name)
        return context


class Member(AtPort):
    """Whether the management server has the data node `node_id` as started (MGM API's protocol, `get status`)."""

    kind: Literal["member"] = "member"
    node_id: int

    def ask(self) -> None:
        """A connection each time: there are few of these questions."""
        with socket.create_connection((self.host, self.port), self.timeout_s) as connection:
            connection.settimeout(self.timeout_s)
            connection.sendall(b"get status\ntypes: NDB\n\n")
            told = b""
            while not told.endswith(b"\n\n"):
                part = connection.recv(CHUNK)
                if not part:
                    raise OSError("cut off by the management server")
                told += part
        wanted = f"node.{self.node_id}.status: "
        states = [line.removeprefix(wanted) for line in told.decode().splitlines() if line.startswith(wanted)]
        if states != ["STARTED"]:
            raise OSError(f"{states[0] if states else 'unknown to the management server'}")


class Spoken(Question):
    """A program on a machine, over SSH, that answers every line with `ok` or with what is wrong.

    One question at a time: while an answer is owed, others wait for that one.
    """

    kind: Literal["spoken"] = "spoken"
    command: tuple[str, ...]
    _process: "subprocess.Popen[bytes] | None" = PrivateAttr(default=None)
    _owed: bool = PrivateAttr(default=False)

    @property
    def at_once(self) -> int:
        """What waits behind a question that is not answered has nothing to ask."""
        return 1

    def ask(self) -> None:
        """A new connection where the last one has ended."""
        process = self._process
        if process is None or process.poll() is not None:
            self.leave()
            process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
            self._process, self._owed = process, False
        assert process.stdin is not None
        assert process.stdout is not None
        if not self._owed:
            process.stdin.write(b"?\n")
            self._owed = True
        if not select.select([process.stdout], [], [], self.timeout_s)[0]:
            raise TimeoutError("no answer yet")
        told = os.read(process.stdout.fileno(), 4096).decode(errors="replace")
        if not told:
            process.wait(self.timeout_s)
            raise OSError("the connection ended")
        self._owed = False
        if told.strip() != "ok":
            raise OSError(told.strip())

    def leave(self) -> None:
        """End the connection; the program over there ends with its input."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


AnyQuestion = Annotated[Page | PublicPage | Row | Port | Call | Member | Spoken, Field(discriminator="kind")]


class Plan(BaseModel):
    """All questions."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    questions: Annotated[tuple[AnyQuestion, ...], Field(min_length=1)]


def ask_one(question: Question, intended_s: float) -> Probe:
    """Ask, and tell how it went."""
    started_s, error = time.monotonic(), ""
    try:
        question.ask()
    except Exception as failure:  # noqa: BLE001 - whatever it was, it was no answer, and the history says what
        error = f"{type(failure).__name__}: {failure}"
    return Probe(
        layer=question.layer, intended_s=intended_s, started_s=started_s, ended_s=time.monotonic(), error=error
    )


def ask_all(plan: Plan, record: Callable[[Probe], None], stop: threading.Event) -> None:
    """Ask every question at its times, from now on until `stop`; returns when the last one is answered.

    The first round is spread over its intervals, and so are all that follow. What `record` raises ends it, and is
    raised: an answer that is not on record was never given.

    Each question has askers of its own, so that one layer that does not answer takes none from the others. They take
    turns: each knows when it is due. To hand every question to one who is free takes half as much processor time again.
    """
    lost: list[Exception] = []

    def put(question: Question, intended_s: float) -> None:
        try:
            record(ask_one(question, intended_s))
        except Exception as error:  # noqa: BLE001 - raised below: from a thread nobody would hear of it
            lost.append(error)
            stop.set()

    def take_turns(question: Question, due_s: float, over: threading.Lock) -> None:
        served_first()
        while not over.acquire(timeout=max(0.0, due_s - time.monotonic())):
            put(question, due_s)
            due_s += question.at_once * question.interval_s
            while question.at_once == 1 and due_s < time.monotonic():
                due_s += question.interval_s  # what falls due while an answer is owed is not asked

    begin_s, count = time.monotonic() + 0.05, len(plan.questions)
    turns = [
        (begin_s + (turn + at / count) * question.interval_s, at)
        for at, question in enumerate(plan.questions)
        for turn in range(question.at_once)
    ]
    askers: list[tuple[threading.Thread, threading.Lock]] = []
    try:
        for due_s, at in sorted(turns):
            if stop.wait(max(0.0, due_s - time.monotonic())):
                break
            over = threading.Lock()
            over.acquire()  # given back when all is over: a lock is the cheapest thing to wait for until a moment
            asker = threading.Thread(target=take_turns, args=(plan.questions[at], due_s, over))
            asker.start()
            askers.append((asker, over))
        stop.wait()
    finally:  # no asker outlives what went wrong here, as where no more threads can be started
        for _, over in askers:
            over.release()
        for asker, _ in askers:
            asker.join()
    for question in plan.questions:
        question.leave()
    if lost:
        raise lost[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the plan, ask until told to end, write the answers."""

    def ask(plan: Plan, answers: Recorder, stop: threading.Event) -> None:
        ask_all(plan, answers.record, stop)

    return recording("chaos.probe", __doc__, Plan, ask, arguments)


if __name__ == "__main__":
    sys.exit(main())
