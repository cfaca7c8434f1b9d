"""Remote procedure calls over TCP (RFC 5531): many threads, one connection, made again as often as it breaks."""

import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

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

    def credential(self) -> bytes:
        """AUTH_SYS, its body with its flavour."""
        body = Writer().uint(0).opaque(os.uname().nodename.encode()).uint(self.uid, self.gid)
        groups = self.groups[:GROUPS_MAX]
        body.uint(len(groups), *groups)
        return Writer().uint(AUTH_SYS).opaque(body.bytes()).bytes()


@dataclass
class _Call:
    """One call that waits for its reply; `sent_over` is the connection that carried it last."""

    record: bytes
    done: threading.Event = field(default_factory=threading.Event)
    reply: bytes | None = None
    sent_over: int = -1


class Client:
    """Calls to one port of one server. A call keeps its number when it is sent again: the server knows it then."""

    def __init__(self, host: str, port: int, patience_s: float | None = None) -> None:
        """`patience_s`: after how long a call fails with Away; None waits as long as it takes."""
        self._address = (host, port)
        self._patience_s = patience_s
        self._numbers = itertools.count(int.from_bytes(os.urandom(4), "big"))
        self._waiting: dict[int, _Call] = {}
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._socket: socket.socket | None = None
        self._generation = 0
        self._closed = False
        self._wanted = threading.Event()
        threading.Thread(target=self._run, name="nfs-rpc", daemon=True).start()

    def call(
        self, program: int, version: int, procedure: int, arguments: bytes = b"", caller: Caller | None = None
    ) -> Reader:
        """The reply's results; raises Away, Refused, and ValueError for a reply that is none."""
        number = next(self._numbers) & 0xFFFFFFFF
        credential = caller.credential() if caller else Writer().uint(AUTH_NONE, 0).bytes()
        header = Writer().uint(number, CALL, VERSION, program, version, procedure)
        body = header.fixed(credential).uint(AUTH_NONE, 0).fixed(arguments).bytes()
        waiting = _Call(struct.pack(">I", LAST_FRAGMENT | len(body)) + body)
        with self._lock:
            self._waiting[number] = waiting
        self._wanted.set()
        try:
            self._send(waiting)
            if not waiting.done.wait(self._patience_s) or waiting.reply is None:
                raise Away(f"{self._address[0]} does not answer")
        finally:
            with self._lock:
                self._waiting.pop(number, None)
        return results(waiting.reply)

    def close(self) -> None:
        """End the connection; calls that wait fail with Away."""
        self._closed = True
        self._wanted.set()
        with self._lock:
            if self._socket:
                self._socket.close()
            for waiting in self._waiting.values():
                waiting.done.set()

    def _send(self, *calls: _Call) -> None:
        """Send what the present connection has not carried yet; a failure is the reader's to notice."""
        with self._sending:
            with self._lock:
                connection, generation = self._socket, self._generation
            if connection is None:
                return
            try:
                for call in calls:
                    if call.sent_over != generation:
                        call.sent_over = generation
                        connection.sendall(call.record)
            except OSError:
                connection.close()

    def _run(self) -> None:
        """Connect when somebody wants something, read replies, and begin anew when the connection breaks."""
        while not self._closed:
            self._wanted.wait()
            connection = self._connect()
            if connection is None:
                continue
            with self._lock:
                self._socket = connection
                self._generation += 1
                unanswered = list(self._waiting.values())
            self._send(*unanswered)
            # The peer is gone, or sends what is no record: in both cases the next connection tells.
            with suppress(OSError, ValueError):
                self._read(connection)
            with self._lock:
                self._socket = None
                if not self._waiting:
                    self._wanted.clear()
            connection.close()

    def _connect(self) -> socket.socket | None:
        began_s = time.monotonic()
        try:
            connection = socket.create_connection(self._address, CONNECT_TIMEOUT_S)
        except OSError:
            # Refused at once, or silent: either way the server is asked about twice a second.
            threading.Event().wait(max(0.0, RETRY_S - (time.monotonic() - began_s)))
            return None
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 3), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3)):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        return connection

    def _read(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            while True:
                record = read_record(stream.read)
                number = int.from_bytes(record[:4], "big")
                with self._lock:
                    waiting = self._waiting.get(number)
                if waiting:
                    waiting.reply = record
                    waiting.done.set()


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
