"""External data representation, RFC 4506: what the calls and replies of RPC are made of."""

import struct


class Writer:
    """Builds a call's bytes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def uint(self, *values: int) -> "Writer":
        """Unsigned 32-bit numbers."""
        self._parts.append(struct.pack(f">{len(values)}I", *values))
        return self

    def hyper(self, value: int) -> "Writer":
        """An unsigned 64-bit number."""
        self._parts.append(struct.pack(">Q", value))
        return self

    def fixed(self, data: bytes) -> "Writer":
        """Bytes of a length that both sides know, a multiple of four."""
        self._parts.append(data)
        return self

    def opaque(self, data: bytes) -> "Writer":
        """Bytes with their length."""
        self._parts += (struct.pack(">I", len(data)), data, b"\0" * (-len(data) % 4))
        return self

    def bytes(self) -> bytes:
        """All of it."""
        return b"".join(self._parts)


class Reader:
    """Takes a reply's bytes apart; raises ValueError when they end too early."""

    def __init__(self, data: bytes, offset: int = 0) -> None:
        self._data = data
        self._offset = offset

    def _take(self, size: int) -> bytes:
        end = self._offset + size
        if end > len(self._data):
            raise ValueError("the reply ends too early")
        taken = self._data[self._offset : end]
        self._offset = end
        return taken

    def uint(self) -> int:
        """An unsigned 32-bit number."""
        return int.from_bytes(self._take(4), "big")

    def uints(self, count: int) -> tuple[int, ...]:
        """Several of them."""
        return struct.unpack(f">{count}I", self._take(4 * count))

    def hyper(self) -> int:
        """An unsigned 64-bit number."""
        return int.from_bytes(self._take(8), "big")

    def fixed(self, size: int) -> bytes:
        """Bytes of a known length, a multiple of four."""
        return self._take(size)

    def opaque(self) -> bytes:
        """Bytes with their length."""
        size = self.uint()
        data = self._take(size)
        self._take(-size % 4)
        return data
