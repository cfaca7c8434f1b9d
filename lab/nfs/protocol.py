"""NFS version 3 and its MOUNT protocol, RFC 1813: every procedure that a file system needs, as a method."""

import errno
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .rpc import Caller, Client
from .xdr import Reader, Writer

PORTMAP_PORT, NFS_PORT = 111, 2049
MOUNT, MOUNT_VERSION, MNT = 100005, 3, 1
NFS, NFS_VERSION = 100003, 3
(
    GETATTR, SETATTR, LOOKUP, ACCESS, READLINK, READ, WRITE, CREATE, MKDIR, SYMLINK, MKNOD,
    REMOVE, RMDIR, RENAME, LINK, READDIR, READDIRPLUS, FSSTAT, FSINFO, PATHCONF, COMMIT,
) = range(1, 22)  # fmt: skip
UNSTABLE, FILE_SYNC = 0, 2
UNCHECKED, EXCLUSIVE = 0, 2
REGULAR, DIRECTORY, BLOCK, CHARACTER, LINK_TYPE, SOCKET, FIFO = range(1, 8)
MODE_OF = {
    REGULAR: 0o100000,
    DIRECTORY: 0o040000,
    BLOCK: 0o060000,
    CHARACTER: 0o020000,
    LINK_TYPE: 0o120000,
    SOCKET: 0o140000,
    FIFO: 0o010000,
}
# Where a status is not the errno of the same number (RFC 1813, section 2.6). The last: “try again later”.
JUKEBOX = 10008
ERRNO_OF = {
    63: errno.ENAMETOOLONG,
    66: errno.ENOTEMPTY,
    69: errno.EDQUOT,
    70: errno.ESTALE,
    71: errno.EREMOTE,
    10001: errno.ESTALE,  # a handle that is none
    10002: errno.EIO,  # SETATTR out of step
    10003: errno.EIO,  # a READDIR cookie grown old
    10004: errno.EOPNOTSUPP,
    10005: errno.EIO,  # a buffer too small
    10006: errno.EIO,  # SERVERFAULT
    10007: errno.EINVAL,  # a type that the server does not make
}
JUKEBOX_WAIT_S = 1.0
# Type, mode, links, owners; size and use; device; numbers of file system and file; three times.
FATTR3 = struct.Struct(">5I2Q2I2Q6I")
DIRECTORY_BYTES = 65536
ENCODING = "latin-1"  # a name is bytes; in this one every byte is a character and comes back as it was


@dataclass(frozen=True)
class Attributes:
    """What a server tells of a file; times in nanoseconds since 1970, sizes in bytes."""

    kind: int
    mode: int
    links: int
    uid: int
    gid: int
    size: int
    used: int
    device: tuple[int, int]
    number: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True)
class Node:
    """A file as the server knows it: its handle, and its attributes when it was last asked."""

    handle: bytes
    attributes: Attributes


@dataclass(frozen=True)
class Space:
    """What FSSTAT tells, in bytes and in files."""

    total: int
    free: int
    available: int
    files: int
    files_free: int
    files_available: int


@dataclass(frozen=True)
class Changes:
    """What SETATTR and the makers of files set; None leaves a thing as it is. Bytes, and nanoseconds; -1 is now."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None

    def encode(self) -> bytes:
        """As sattr3."""
        out = Writer()
        for value in (self.mode, self.uid, self.gid):
            out.uint(0) if value is None else out.uint(1, value)
        out.uint(0) if self.size is None else out.uint(1).hyper(self.size)
        for time_ns in (self.atime_ns, self.mtime_ns):
            if time_ns is None:
                out.uint(0)
            elif time_ns == -1:
                out.uint(1)
            else:
                out.uint(2, *divmod(time_ns, 10**9))
        return out.bytes()


def error(status: int) -> OSError:
    """A status as the error that a program on this machine would see. Pure."""
    number = ERRNO_OF.get(status, status if status < 10000 else errno.EIO)
    return OSError(number, f"NFS status {status}")


def read_attributes(reply: Reader) -> Attributes:
    """A fattr3."""
    kind, mode, links, uid, gid, size, used, major, minor, _, number, *times = FATTR3.unpack(reply.fixed(FATTR3.size))
    atime_ns, mtime_ns, ctime_ns = (times[at] * 10**9 + times[at + 1] for at in (0, 2, 4))
    return Attributes(kind, mode, links, uid, gid, size, used, (major, minor), number, atime_ns, mtime_ns, ctime_ns)


def optional_attributes(reply: Reader) -> Attributes | None:
    """A post_op_attr."""
    return read_attributes(reply) if reply.uint() else None


def skip_weak_cache_data(reply: Reader) -> Attributes | None:
    """A wcc_data; gives what it says of afterwards."""
    if reply.uint():
        reply.fixed(24)
    return optional_attributes(reply)


class Server:
    """One export of one server, by its root's handle; every call is made for a caller.

    Methods raise OSError with the errno that the server's status stands for, and rpc.Away.
    """

    def __init__(self, client: Client, root: bytes) -> None:
        self.client = client
        self.root = root

    def _call(self, procedure: int, arguments: bytes, caller: Caller) -> Reader:
        """The reply behind its status; what the server has to fetch first is asked for again."""
        while True:
            reply = self.client.call(NFS, NFS_VERSION, procedure, arguments, caller)
            status = reply.uint()
            if status == 0:
                return reply
            if status != JUKEBOX:
                raise error(status)
            threading.Event().wait(JUKEBOX_WAIT_S)

    def attributes(self, handle: bytes, caller: Caller) -> Attributes:
        """What the server tells now."""
        return read_attributes(self._call(GETATTR, Writer().opaque(handle).bytes(), caller))

    def change(self, handle: bytes, changes: Changes, caller: Caller) -> None:
        """Set what `changes` names."""
        self._call(SETATTR, Writer().opaque(handle).fixed(changes.encode()).uint(0).bytes(), caller)

    def lookup(self, parent: bytes, name: str, caller: Caller) -> Node:
        """The file of that name in a directory."""
        reply = self._call(LOOKUP, Writer().opaque(parent).opaque(encoded(name)).bytes(), caller)
        handle = reply.opaque()
        return Node(handle, optional_attributes(reply) or self.attributes(handle, caller))

    def read_link(self, handle: bytes, caller: Caller) -> str:
        """Where a symbolic link leads."""
        reply = self._call(READLINK, Writer().opaque(handle).bytes(), caller)
        optional_attributes(reply)
        return reply.opaque().decode(ENCODING)

    def read(self, handle: bytes, offset: int, size: int, caller: Caller) -> bytes:
        """As many bytes as there are, `size` at most."""
        parts = []
        while size:
            reply = self._call(READ, Writer().opaque(handle).hyper(offset).uint(size).bytes(), caller)
            optional_attributes(reply)
            _, ended = reply.uints(2)
            data = reply.opaque()
            parts.append(data)
            if ended or not data:
                break
            offset, size = offset + len(data), size - len(data)
        return b"".join(parts)

    def write(self, handle: bytes, offset: int, data: bytes, caller: Caller) -> bytes:
        """Give data to the server, which may lose them until `commit`; gives the verifier of the server's life."""
        verifier = b""
        while data:
            arguments = Writer().opaque(handle).hyper(offset).uint(len(data), UNSTABLE).opaque(data).bytes()
            reply = self._call(WRITE, arguments, caller)
            skip_weak_cache_data(reply)
            count, _ = reply.uints(2)
            now = reply.fixed(8)
            # Two lives of the server in one write: nothing says what the first one kept.
            verifier = now if verifier in (b"", now) else b"?"
            offset, data = offset + count, data[count:]
        return verifier

    def commit(self, handle: bytes, caller: Caller) -> bytes:
        """Have everything written to the file on the server's disk; gives the verifier of the server's life."""
        reply = self._call(COMMIT, Writer().opaque(handle).hyper(0).uint(0).bytes(), caller)
        skip_weak_cache_data(reply)
        return reply.fixed(8)

    def create(self, parent: bytes, name: str, changes: Changes, caller: Caller, *, exclusive: bool) -> Node:
        """Make a regular file, or take the one that is there, unless `exclusive`."""
        arguments = Writer().opaque(parent).opaque(encoded(name))
        if not exclusive:
            arguments.uint(UNCHECKED).fixed(changes.encode())
            return self._made(self._call(CREATE, arguments.bytes(), caller), parent, name, caller)
        # The server keeps the verifier with the file: a call that is sent again finds its own file, not another's.
        arguments.uint(EXCLUSIVE).fixed(os.urandom(8))
        made = self._made(self._call(CREATE, arguments.bytes(), caller), parent, name, caller)
        self.change(made.handle, replace(changes, atime_ns=-1, mtime_ns=-1), caller)
        return Node(made.handle, self.attributes(made.handle, caller))

    def make_directory(self, parent: bytes, name: str, changes: Changes, caller: Caller) -> Node:
        """Make a directory."""
        arguments = Writer().opaque(parent).opaque(encoded(name)).fixed(changes.encode()).bytes()
        return self._made(self._call(MKDIR, arguments, caller), parent, name, caller)

    def make_link(self, parent: bytes, name: str, target: str, changes: Changes, caller: Caller) -> Node:
        """Make a symbolic link."""
        arguments = Writer().opaque(parent).opaque(encoded(name)).fixed(changes.encode()).opaque(encoded(target))
        return self._made(self._call(SYMLINK, arguments.bytes(), caller), parent, name, caller)

    def make_special(
        self, parent: bytes, name: str, kind: int, device: tuple[int, int], changes: Changes, caller: Caller
    ) -> Node:
        """Make a FIFO, a socket or a device."""
        arguments = Writer().opaque(parent).opaque(encoded(name)).uint(kind).fixed(changes.encode())
        if kind in (BLOCK, CHARACTER):
            arguments.uint(*device)
        return self._made(self._call(MKNOD, arguments.bytes(), caller), parent, name, caller)

    def _made(self, reply: Reader, parent: bytes, name: str, caller: Caller) -> Node:
        handle = reply.opaque() if reply.uint() else None
        attributes = optional_attributes(reply)
        if handle is None:
            return self.lookup(parent, name, caller)
        return Node(handle, attributes or self.attributes(handle, caller))

    def remove(self, parent: bytes, name: str, caller: Caller) -> None:
        """Remove what is no directory."""
        self._call(REMOVE, Writer().opaque(parent).opaque(encoded(name)).bytes(), caller)

    def remove_directory(self, parent: bytes, name: str, caller: Caller) -> None:
        """Remove an empty directory."""
        self._call(RMDIR, Writer().opaque(parent).opaque(encoded(name)).bytes(), caller)

    def rename(self, parent: bytes, name: str, new_parent: bytes, new_name: str, caller: Caller) -> None:
        """Rename, over what is there."""
        source = Writer().opaque(parent).opaque(encoded(name))
        self._call(RENAME, source.opaque(new_parent).opaque(encoded(new_name)).bytes(), caller)

    def link(self, handle: bytes, parent: bytes, name: str, caller: Caller) -> None:
        """Give a file another name."""
        self._call(LINK, Writer().opaque(handle).opaque(parent).opaque(encoded(name)).bytes(), caller)

    def entries(self, handle: bytes, caller: Caller) -> Iterator[tuple[str, Node | None]]:
        """Every name in a directory, with its file where the server tells."""
        cookie, verifier, ended = 0, bytes(8), False
        while not ended:
            arguments = Writer().opaque(handle).hyper(cookie).fixed(verifier)
            reply = self._call(READDIRPLUS, arguments.uint(DIRECTORY_BYTES // 8, DIRECTORY_BYTES).bytes(), caller)
            optional_attributes(reply)
            verifier = reply.fixed(8)
            while reply.uint():
                reply.hyper()
                name = reply.opaque().decode(ENCODING)
                cookie = reply.hyper()
                attributes = optional_attributes(reply)
                found = reply.opaque() if reply.uint() else None
                yield name, Node(found, attributes) if found and attributes else None
            ended = bool(reply.uint())

    def space(self, caller: Caller) -> Space:
        """How much room there is."""
        reply = self._call(FSSTAT, Writer().opaque(self.root).bytes(), caller)
        optional_attributes(reply)
        return Space(*(reply.hyper() for _ in range(6)))


def encoded(name: str) -> bytes:
    """A name as it came from the kernel, whatever its bytes. Pure."""
    return name.encode(ENCODING)


def root_handle(host: str, port: int, path: str, caller: Caller, patience_s: float) -> bytes:
    """The handle that the server's MOUNT service gives for an export; raises OSError, rpc.Away and rpc.Refused."""
    client = Client(host, port, patience_s)
    try:
        reply = client.call(MOUNT, MOUNT_VERSION, MNT, Writer().opaque(encoded(path)).bytes(), caller)
        if status := reply.uint():
            raise error(status)
        return reply.opaque()
    finally:
        client.close()
