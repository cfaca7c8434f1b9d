"""What passes through a tunnel: requests one way, answers the other, many at a time over one websocket.

A message is a stream's number, a kind, and the kind's bytes. The connector's package carries this module.
"""

import json
import struct
from typing import Any

HEAD, DATA, END, RESET = range(4)
CHUNK = 65536
HEADER = struct.Struct(">IB")
# Between two machines only, never passed on (RFC 9110, section 7.6.1).
HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)


def pack(stream: int, kind: int, data: bytes = b"") -> bytes:
    """One message."""
    return HEADER.pack(stream, kind) + data


def pack_head(stream: int, head: dict[str, Any]) -> bytes:
    """A request's or an answer's head: a JSON object."""
    return pack(stream, HEAD, json.dumps(head).encode())


def unpack(message: bytes) -> tuple[int, int, bytes]:
    """The stream's number, the kind and its bytes; raises ValueError for what is no message."""
    if len(message) < HEADER.size:
        raise ValueError("a message that is too short")
    stream, kind = HEADER.unpack_from(message)
    return stream, kind, message[HEADER.size :]


def passed_on(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Headers without those that concern one connection only. Pure."""
    named = {
        word.strip().lower() for name, value in headers if name.lower() == "connection" for word in value.split(",")
    }
    return [(name, value) for name, value in headers if name.lower() not in HOP | named]
