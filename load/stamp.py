"""When an answer had arrived, as the kernel noted it: how long a busy generator left it unread is not the site's doing.

Only the generator imports this: it belongs to gevent's world.
"""

import struct
import sys
import time
from contextlib import suppress
from socket import SOL_SOCKET
from typing import Any

from gevent.socket import socket

STAMP = 35  # SO_TIMESTAMPNS, and the kind of message that it makes (Linux, asm-generic/socket.h)
TIMESPEC = struct.Struct("@ll")  # by the clock that time.time() reads
ROOM = 64  # for one such message and its head


class Stamped(socket):  # type: ignore[misc]
    """A TCP socket that knows when the last of what was read from it had arrived.

    `arrived_s` is by `time.monotonic()`: when it was read, where the kernel notes nothing, and 0 where nothing was read
    from here, as where TLS does that.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.arrived_s = 0.0
        if sys.platform == "linux":
            with suppress(OSError):
                self.setsockopt(SOL_SOCKET, STAMP, 1)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """As any socket's; at most `size` bytes."""
        data, told, _, _ = self.recvmsg(size, ROOM, flags)
        self.arrived_s = time.monotonic()
        for level, kind, value in told:
            if (level, kind, len(value)) == (SOL_SOCKET, STAMP, TIMESPEC.size):
                seconds, nanoseconds = TIMESPEC.unpack(value)
                self.arrived_s -= max(0.0, time.time() - seconds - nanoseconds / 1e9)
        return bytes(data)
