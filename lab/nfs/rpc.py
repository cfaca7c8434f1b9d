"""Remote procedure calls over TCP (RFC 5531): a connection for each call under way, made anew whenever it breaks."""

import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

from .xdr import Reader, Writer

CALL, REPLY, VERSION = 0, 1, 2
AUTH_NONE, AUTH_SYS = 0, 1
GROUPS_MAX = 16  # of AUTH_SYS
LAST_FRAGMENT = 0x80000000
RECORD_MAX = 8 << 20
ACCEPT_STATUS = {1: "no such program", 2: "no such version", 3: "no such procedure", 4: "bad arguments", 5: "its error"}
CONNECT_TIMEOUT_S = 3.0
RETRY_S = 0.5
# A peer without power says nothing: after this long without an answer from its kernel the connection is given up.
SILENCE_MS = 10_000


class Away(OSError):
    """The server did not answer in the time that a soft mount gives it."""


class Refused(OSError):
    """The server does not know the program, or rejects the caller."""


@dataclass(frozen=True)
class Caller:
    """Whom a call is made for."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    @cached_property
    def credential(self) -> bytes:
        """AUTH_SYS, its body with its flavour."""
        body = Writer().uint(0).opaque(os.uname().nodename.encode()).uint(self.uid, self.gid)
        groups = self.groups[:GROUPS_MAX]
        body.uint(len(groups), *groups)
        return Writer().uint(AUTH_SYS).opaque(body.bytes()).bytes()


@dataclass(frozen=True)
class Connection:
    """A connection to the server; `stream` reads from it."""

    socket: socket.socket
    stream: BinaryIO

    def exchange(self, record: bytes) -> bytes:
        """The record that answers `record`; raises OSError and ValueError, after which the connection is of no use."""
        self.socket.sendall(record)
        return read_record(self.stream.read)

    def close(self) -> None:
        """End it."""
        self.stream.close()
        self.socket.close()


class Client:
    """Calls to one port of one server.

    Whoever calls waits for the answer itself, over a connection that nobody else uses meanwhile: a reader that hands
    the answers out would cost each call two changes of thread. A call keeps its number when it is sent again.
    """

    def __init__(self, host: str, port: int, patience_s: float | None = None) -> None:
        """`patience_s`: after how long a call fails with Away; None waits as long as it takes."""
        self._address = (host, port)
        self._patience_s = patience_s
        self._numbers = itertools.count(int.from_bytes(os.urandom(4), "big"))
        self._idle: list[Connection] = []
        self._lock = threading.Lock()

    def call(
        self, program: int, version: int, procedure: int, arguments: bytes = b"", caller: Caller | None = None
    ) -> Reader:
        """The reply's results; raises Away, Refused, and ValueError for a reply that is none."""
        number = next(self._numbers) & 0xFFFFFFFF
        credential = caller.credential if caller else Writer().uint(AUTH_NONE, 0).bytes()
        header = Writer().uint(number, CALL, VERSION, program, version, procedure)
        body = header.fixed(credential).uint(AUTH_NONE, 0).fixed(arguments).bytes()
        return results(self._answer(struct.pack(">I", LAST_FRAGMENT | len(body)) + body))

    def close(self) -> None:
        """End the connections that nobody uses."""
        with self._lock:
            while self._idle:
                self._idle.pop().close()

    def _answer(self, record: bytes) -> bytes:
        """The answer to a record, sent again over new connections until there is one; raises Away."""
        until_s = None if self._patience_s is None else time.monotonic() + self._patience_s
        while True:
            began_s = time.monotonic()
            try:
                connection, fresh = self._connection(until_s)
            except OSError:
                fresh = True
            else:
                try:
                    reply = connection.exchange(record)
                except (OSError, ValueError):
                    connection.close()
                else:
                    with self._lock:
                        self._idle.append(connection)
                    return reply
            if until_s is not None and time.monotonic() >= until_s:
                raise Away(f"{self._address[0]} does not answer")
            if fresh:
                # Refused at once, or silent: either way the server is asked about twice a second.
                threading.Event().wait(max(0.0, RETRY_S - (time.monotonic() - began_s)))

    def _connection(self, until_s: float | None) -> tuple[Connection, bool]:
        """A connection that waits no longer than `until_s` (monotonic clock), and whether it is a new one."""
        with self._lock:
            kept = self._idle.pop() if self._idle else None
        connection = kept or self._connect()
        if until_s is not None:
            connection.socket.settimeout(max(0.01, until_s - time.monotonic()))
        return connection, kept is None

    def _connect(self) -> Connection:
        """A new connection; raises OSError."""
        made = socket.create_connection(self._address, min(CONNECT_TIMEOUT_S, self._patience_s or CONNECT_TIMEOUT_S))
        made.settimeout(None)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 3), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3)):
            made.setsockopt(socket.IPPROTO_TCP, option, value)
        return Connection(made, made.makefile("rb"))


def read_record(read: Callable[[int], bytes]) -> bytes:
    """One record of RFC 5531, section 11, of its fragments; raises ValueError at the end of the stream."""
    record = bytearray()
    while True:
        head = read(4)
        if len(head) < 4:
            raise ValueError("the stream has ended")
        length = int.from_bytes(head, "big")
        size = length & ~LAST_FRAGMENT
        if len(record) + size > RECORD_MAX:
            raise ValueError("a record of this size is none of ours")
        fragment = read(size)
        if len(fragment) < size:
            raise ValueError("the stream has ended")
        record += fragment
        if length & LAST_FRAGMENT:
            return bytes(record)


def results(record: bytes) -> Reader:
    """What follows the head of a reply; raises Refused when the call was not carried out."""
    reply = Reader(record)
    _, kind, denied = reply.uint(), reply.uint(), reply.uint()
    if kind != REPLY:
        raise ValueError("expected a reply, found a call")
    if denied:
        raise Refused("the server rejects the caller")
    reply.uint()
    reply.opaque()  # the server's verifier
    if status := reply.uint():
        raise Refused(f"the server does not carry the call out: {ACCEPT_STATUS.get(status, status)}")
    return reply


def ports(host: str, wanted: Sequence[tuple[int, int]], patience_s: float) -> list[int]:
    """The TCP ports of (program, version) pairs at the host's rpcbind (RFC 1833); 0 for one that it does not know.

    Raises Away and Refused.
    """
    client = Client(host, 111, patience_s)
    try:
        return [
            client.call(100000, 2, 3, Writer().uint(program, version, socket.IPPROTO_TCP, 0).bytes()).uint()
            for program, version in wanted
        ]
    finally:
        client.close()
