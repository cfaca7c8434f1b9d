"""Probes of the target's layers, each at its own steady rate whatever the answers do (open model).

A process of its own, `python -m chaos.probe FILE`, with the questions on its standard input: what the drill is busy
with never delays a question, and what a question holds (a password) is in no process list. SIGTERM ends it.
"""

import argparse
import heapq
import http.client
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal

import pymysql
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from chaos.history import Probe, Recorder


class Question(BaseModel):
    """What one layer is asked, every `interval_s`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    layer: str
    host: str
    port: int
    timeout_s: Annotated[float, Field(gt=0)] = 2.0

    def ask(self) -> None:
        """Return when it is answered; raises OSError and others with the reason why it is not."""
        raise NotImplementedError


class Page(Question):
    """A page over HTTP; `ca` is a certificate's text, and asks over TLS."""

    kind: Literal["page"] = "page"
    path: str = "/"
    name: Annotated[str, Field(description="the host that is asked for")] = ""
    ca: str = ""

    def ask(self) -> None:
        """Any answer but 200 is a failure of its own."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)
        try:
            if self.ca:
                plain = socket.create_connection((self.host, self.port), self.timeout_s)
                trusted = ssl.create_default_context(cadata=self.ca)
                trusted.check_hostname = bool(self.name)
                connection.sock = trusted.wrap_socket(plain, server_hostname=self.name or None)
            connection.request("GET", self.path, headers={"Host": self.name or self.host, "Connection": "close"})
            reply = connection.getresponse()
            reply.read()
        finally:
            connection.close()
        if reply.status != http.client.OK:
            raise OSError(f"HTTP {reply.status}")


class Row(Question):
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
            connection = pymysql.connect(
                host=self.host,
                port=self.port,
                user=self.user,
                password=self.password,
                database=self.database,
                connect_timeout=max(1, round(self.timeout_s)),
                read_timeout=self.timeout_s,
                autocommit=True,
            )
        try:
            with connection.cursor() as cursor:
                cursor.execute(self.query)
                cursor.fetchall()
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)


class Port(Question):
    """A TCP connection that is accepted."""

    kind: Literal["port"] = "port"

    def ask(self) -> None:
        """Connect and leave."""
        socket.create_connection((self.host, self.port), self.timeout_s).close()


AnyQuestion = Annotated[Page | Row | Port, Field(discriminator="kind")]


class Plan(BaseModel):
    """All questions, and how often each is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    interval_s: Annotated[float, Field(gt=0)] = 0.05
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

    The questions of one round are spread over the interval.
    """
    begin_s = time.monotonic() + plan.interval_s
    count = len(plan.questions)
    due = [(begin_s + at * plan.interval_s / count, at) for at in range(count)]
    heapq.heapify(due)
    with ThreadPoolExecutor(sum(threads_for(plan, question) for question in plan.questions)) as pool:
        while not stop.wait(max(0.0, due[0][0] - time.monotonic())):
            intended_s, at = due[0]
            heapq.heapreplace(due, (intended_s + plan.interval_s, at))
            pool.submit(lambda q, s: record(ask_one(q, s)), plan.questions[at], intended_s)


def threads_for(plan: Plan, question: Question) -> int:
    """How many questions of a layer may wait at once when nothing is answered, with some to spare. Pure."""
    return int(2 * question.timeout_s / plan.interval_s) + 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the plan, ask until SIGTERM, write the answers."""
    parser = argparse.ArgumentParser(prog="python -m chaos.probe", description=__doc__)
    parser.add_argument("file", type=Path, help="where the answers go; must not exist")
    file = parser.parse_args(arguments).file
    plan = Plan.model_validate_json(sys.stdin.read())
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the drill's: it ends this process in its order
    recorder = Recorder.into(file)
    ask_all(plan, recorder.record, stop)
    recorder.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
