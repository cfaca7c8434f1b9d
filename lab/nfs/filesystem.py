"""The file system that the kernel sees: what FUSE asks by path, answered by NFS handles."""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import fusepy  # Debian's name for the module

from .protocol import BLOCK, CHARACTER, FIFO, MODE_OF, SOCKET, Attributes, Changes, Node, Server
from .rpc import Away, Caller, Refused

Result = TypeVar("Result")

UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
KEPT_S = 10.0  # how long a name leads to a handle without asking again: no longer than the kernel keeps names itself
GROUPS_KEPT_S = 5.0
CACHED_MAX = 100_000  # files
PENDING_MAX = 16 << 20  # bytes of a file that a server may have lost; beyond, they are committed
KIND_OF = {stat.S_IFIFO: FIFO, stat.S_IFSOCK: SOCKET, stat.S_IFBLK: BLOCK, stat.S_IFCHR: CHARACTER}


def stat_of(found: Attributes) -> dict[str, int]:
    """Attributes as fusepy takes them, times in nanoseconds. Pure."""
    return {
        "st_mode": MODE_OF[found.kind] | found.mode & 0o7777,
        "st_ino": found.number,
        "st_nlink": found.links,
        "st_uid": found.uid,
        "st_gid": found.gid,
        "st_rdev": os.makedev(*found.device),
        "st_size": found.size,
        "st_blocks": -(-found.used // 512),
        "st_blksize": 131072,
        "st_atime": found.atime_ns,
        "st_mtime": found.mtime_ns,
        "st_ctime": found.ctime_ns,
    }


def time_to_set(value_ns: int) -> int | None:
    """A time as utimensat gives it, for `Changes`: nanoseconds, -1 for now, None for leaving it. Pure."""
    return {UTIME_NOW: -1, UTIME_OMIT: None}.get(value_ns, value_ns)


def groups_in(status: str) -> tuple[int, ...]:
    """The supplementary groups in what /proc/PID/status says. Pure."""
    line = next((line for line in status.splitlines() if line.startswith("Groups:")), "Groups:")
    return tuple(int(word) for word in line.split()[1:])


@dataclass
class OpenFile:
    """An open file: whose it is, and what the server may still lose, with the verifiers that it was given for it.

    `passed_by` says that the kernel's cache is passed by, for the kernel has another size of the file in mind.
    """

    handle: bytes
    caller: Caller
    passed_by: bool = False
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    verifiers: set[bytes] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def pending_bytes(self) -> int:
        """How much that is."""
        return sum(len(data) for _, data in self.pending)


class Names:
    """Which handle a name in a directory leads to, for a while."""

    def __init__(self) -> None:
        self._found: dict[tuple[bytes, str], tuple[float, Node]] = {}
        self._lock = threading.Lock()

    def get(self, parent: bytes, name: str) -> Node | None:
        """The file, if it was found not long ago."""
        with self._lock:
            until, node = self._found.get((parent, name), (0.0, None))
        return node if time.monotonic() < until else None

    def put(self, parent: bytes, name: str, node: Node) -> None:
        """Remember it."""
        with self._lock:
            if len(self._found) > CACHED_MAX:
                self._found.clear()
            self._found[parent, name] = (time.monotonic() + KEPT_S, node)

    def drop(self, parent: bytes, name: str) -> None:
        """Forget it."""
        with self._lock:
            self._found.pop((parent, name), None)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._found.clear()


class Cached:
    """What the kernel has of files: the size that it goes by, and what each was like when its pages were read."""

    def __init__(self) -> None:
        self._sizes: dict[bytes, int] = {}
        self._versions: dict[bytes, tuple[int, int, int]] = {}

    def told(self, node: Node) -> None:
        """The kernel was given these attributes."""
        if len(self._sizes) > CACHED_MAX:
            self._sizes.clear()
        self._sizes[node.handle] = node.attributes.size

    def wrote(self, handle: bytes, end: int) -> None:
        """The kernel has a file of at least this many bytes now, for it wrote them itself."""
        self._sizes[handle] = max(end, self._sizes.get(handle, 0))

    def opened(self, handle: bytes, now: Attributes) -> tuple[bool, bool]:
        """Whether the size that the kernel has still holds, and whether its pages do."""
        version = (now.size, now.mtime_ns, now.ctime_ns)
        if len(self._versions) > CACHED_MAX:
            self._versions.clear()
        same = self._versions.get(handle) == version
        self._versions[handle] = version
        return self._sizes.get(handle) == now.size, same


class FileSystem(fusepy.Operations):  # type: ignore[misc]  # the module has no types
    """What FUSE asks for. Paths are absolute within the mount; every failure is an OSError."""

    use_ns = True
    flag_utime_omit_ok = 1

    def __init__(self, server: Server) -> None:
        self._server = server
        self._names = Names()
        self._cached = Cached()
        self._open: dict[int, OpenFile] = {}
        self._next = 0
        self._lock = threading.Lock()
        self._callers: dict[int, tuple[float, Caller]] = {}

    def __call__(self, operation: str, *arguments: Any) -> Any:
        """Every operation comes through here: what is no errno yet becomes one."""
        try:
            return getattr(self, operation)(*arguments)
        except (Away, Refused, ValueError) as error:
            raise OSError(errno.EIO, str(error)) from error

    # -- who asks, and for what

    def _caller(self) -> Caller:
        uid, gid, pid = fusepy.fuse_get_context()
        now_s = time.monotonic()
        until_s, caller = self._callers.get(pid, (0.0, None))
        if caller is None or until_s < now_s or (caller.uid, caller.gid) != (uid, gid):
            try:
                with open(f"/proc/{pid}/status") as status:
                    groups = groups_in(status.read())
            except OSError:
                groups = ()  # the kernel itself, or one who has ended: nobody's groups
            if len(self._callers) > 1000:
                self._callers.clear()
            caller = Caller(uid, gid, groups)
            self._callers[pid] = (now_s + GROUPS_KEPT_S, caller)
        return caller

    def _at(self, path: str, caller: Caller, *, fresh: bool = False) -> Node:
        """The file at `path`; with `fresh`, with its attributes as they are now."""
        handle, node = self._server.root, None
        words = path.strip("/").split("/") if path != "/" else []
        for index, word in enumerate(words):
            node = None if fresh and index == len(words) - 1 else self._names.get(handle, word)
            if node is None:
                try:
                    node = self._server.lookup(handle, word, caller)
                except OSError:
                    self._names.drop(handle, word)
                    raise
                self._names.put(handle, word, node)
            handle = node.handle
        return node or Node(handle, self._server.attributes(handle, caller))

    def _with(self, path: str, work: Callable[[Node], Result], caller: Caller) -> Result:
        """`work` on the file at `path`; once more where a name that was kept led to a file that is no more."""
        try:
            return work(self._at(path, caller))
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        self._names.clear()
        return work(self._at(path, caller))

    def _in(self, path: str, work: Callable[[bytes, str], Result], caller: Caller) -> Result:
        """`work` on the directory that holds `path`, and its name there."""
        folder, _, name = path.rstrip("/").rpartition("/")
        return self._with(folder or "/", lambda node: work(node.handle, name), caller)

    def _made(self, path: str, make: Callable[[bytes, str], Node], caller: Caller) -> Node:
        def made(parent: bytes, name: str) -> Node:
            node = make(parent, name)
            self._names.put(parent, name, node)
            return node

        return self._in(path, made, caller)

    def _gone(self, path: str, remove: Callable[[bytes, str], None], caller: Caller) -> None:
        def gone(parent: bytes, name: str) -> None:
            self._names.drop(parent, name)
            remove(parent, name)

        self._in(path, gone, caller)

    # -- what a file is

    def getattr(self, path: str | None, fi: Any = None) -> dict[str, int]:
        """Asked of the server each time: what may be kept, the kernel keeps."""
        caller = self._caller()
        if fi is not None and (opened := self._open.get(fi.fh)):
            return self._told(Node(opened.handle, self._server.attributes(opened.handle, caller)))
        try:
            return self._told(self._at(path or "/", caller, fresh=True))
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        self._names.clear()
        return self._told(self._at(path or "/", caller, fresh=True))

    def _told(self, node: Node) -> dict[str, int]:
        self._cached.told(node)
        return stat_of(node.attributes)

    def _change(self, path: str, changes: Changes) -> None:
        caller = self._caller()
        self._with(path, lambda node: self._server.change(node.handle, changes, caller), caller)

    def chmod(self, path: str, mode: int) -> None:
        """Set the permission bits."""
        self._change(path, Changes(mode=stat.S_IMODE(mode)))

    def chown(self, path: str, uid: int, gid: int) -> None:
        """Set the owners; -1 leaves one as it is."""
        self._change(path, Changes(uid=None if uid == -1 else uid, gid=None if gid == -1 else gid))

    def truncate(self, path: str, length: int, fi: Any = None) -> None:
        """Set the size; of an open file by what it was opened as."""
        opened = self._open.get(fi.fh) if fi is not None else None
        if opened:
            self._server.change(opened.handle, Changes(size=length), opened.caller)
        else:
            self._change(path, Changes(size=length))

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
        """Set the times, to the nanosecond."""
        atime_ns, mtime_ns = times or (UTIME_NOW, UTIME_NOW)
        self._change(path, Changes(atime_ns=time_to_set(atime_ns), mtime_ns=time_to_set(mtime_ns)))

    def readlink(self, path: str) -> str:
        """Where a symbolic link leads."""
        caller = self._caller()
        return self._with(path, lambda node: self._server.read_link(node.handle, caller), caller)

    def statfs(self, path: str) -> dict[str, int]:
        """How much room the server has."""
        space, block = self._server.space(self._caller()), 4096
        return {
            "f_bsize": block,
            "f_frsize": block,
            "f_blocks": space.total // block,
            "f_bfree": space.free // block,
            "f_bavail": space.available // block,
            "f_files": space.files,
            "f_ffree": space.files_free,
            "f_favail": space.files_available,
            "f_namemax": 255,
        }

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """NFS version 3 has none; told once, the kernel asks no more."""
        raise OSError(errno.ENOSYS, "no extended attributes")

    # -- what is in a directory

    def readdir(self, path: str, fh: int) -> Iterator[tuple[str, dict[str, int] | None, int]]:
        """Names, with what the server tells of each; what they lead to is kept."""
        caller = self._caller()
        folder = self._at(path, caller)
        for name, node in self._server.entries(folder.handle, caller):
            if node and name not in (".", ".."):
                self._names.put(folder.handle, name, node)
            yield name, stat_of(node.attributes) if node else None, 0

    def mkdir(self, path: str, mode: int) -> None:
        """Make a directory."""
        caller, changes = self._caller(), Changes(mode=stat.S_IMODE(mode))
        self._made(path, lambda parent, name: self._server.make_directory(parent, name, changes, caller), caller)

    def mknod(self, path: str, mode: int, device: int) -> None:
        """Make a FIFO, a socket, a device, or an empty file."""
        caller, changes, kind = self._caller(), Changes(mode=stat.S_IMODE(mode)), KIND_OF.get(stat.S_IFMT(mode))

        def make(parent: bytes, name: str) -> Node:
            if kind is None:
                return self._server.create(parent, name, changes, caller, exclusive=True)
            numbers = (os.major(device), os.minor(device))
            return self._server.make_special(parent, name, kind, numbers, changes, caller)

        self._made(path, make, caller)

    def symlink(self, path: str, target: str) -> None:
        """Make a symbolic link at `path`."""
        caller, changes = self._caller(), Changes(mode=0o777)
        self._made(path, lambda parent, name: self._server.make_link(parent, name, target, changes, caller), caller)

    def link(self, path: str, existing: str) -> None:
        """Give the file `existing` the name `path` as well."""
        caller = self._caller()
        node = self._at(existing, caller)
        self._in(path, lambda parent, name: self._server.link(node.handle, parent, name, caller), caller)

    def unlink(self, path: str) -> None:
        """Remove what is no directory."""
        caller = self._caller()
        self._gone(path, lambda parent, name: self._server.remove(parent, name, caller), caller)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        caller = self._caller()
        self._gone(path, lambda parent, name: self._server.remove_directory(parent, name, caller), caller)

    def rename(self, old: str, new: str) -> None:
        """Rename, over what is there."""
        caller = self._caller()

        def rename(parent: bytes, name: str, new_parent: bytes, new_name: str) -> None:
            self._names.drop(parent, name)
            self._names.drop(new_parent, new_name)
            self._server.rename(parent, name, new_parent, new_name, caller)

        self._in(old, lambda p, n: self._in(new, lambda q, m: rename(p, n, q, m), caller), caller)

    # -- what is in a file

    def _opened(self, handle: bytes, caller: Caller, fi: Any, *, passed_by: bool = False) -> None:
        with self._lock:
            self._next += 1
            fi.fh = self._next
            self._open[fi.fh] = OpenFile(handle, caller, passed_by)

    def open(self, path: str, fi: Any) -> None:
        """Open a file, as it is at the server now (close-to-open); the kernel has checked the permissions.

        FUSE has no answer to an open that says how long the file is: where the kernel is wrong, its cache is passed by.
        """
        caller = self._caller()

        def opened(node: Node) -> None:
            sized, same = self._cached.opened(node.handle, self._server.attributes(node.handle, caller))
            fi.keep_cache, fi.direct_io = int(sized and same), int(not sized)
            self._opened(node.handle, caller, fi, passed_by=not sized)

        self._with(path, opened, caller)

    def create(self, path: str, mode: int, fi: Any) -> None:
        """Make a file and open it; with O_EXCL, only one that was not there."""
        caller, exclusive = self._caller(), bool(fi.flags & os.O_EXCL)
        changes = Changes(mode=stat.S_IMODE(mode))
        node = self._made(
            path, lambda parent, name: self._server.create(parent, name, changes, caller, exclusive=exclusive), caller
        )
        self._opened(node.handle, caller, fi)

    def read(self, path: str | None, size: int, offset: int, fi: Any) -> bytes:
        """At most `size` bytes of an open file."""
        opened = self._open[fi.fh]
        return self._server.read(opened.handle, offset, size, opened.caller)

    def write(self, path: str | None, data: bytes, offset: int, fi: Any) -> int:
        """Give the server bytes, and keep them until they are on its disk."""
        opened = self._open[fi.fh]
        with opened.lock:
            self._cached.wrote(opened.handle, offset + len(data))
            if opened.passed_by and fi.flags & os.O_APPEND:
                offset = self._server.attributes(opened.handle, opened.caller).size
            opened.verifiers.add(self._server.write(opened.handle, offset, data, opened.caller))
            opened.pending.append((offset, data))
            if opened.pending_bytes > PENDING_MAX:
                self._commit(opened)
        return len(data)

    def _commit(self, opened: OpenFile) -> None:
        """Have what was written on the server's disk; what a restarted server has lost is written again."""
        while opened.pending:
            committed = self._server.commit(opened.handle, opened.caller)
            if opened.verifiers == {committed}:
                opened.pending.clear()
                opened.verifiers.clear()
                return
            opened.verifiers = {
                self._server.write(opened.handle, offset, data, opened.caller) for offset, data in opened.pending
            }

    def fsync(self, path: str | None, datasync: int, fi: Any) -> None:
        """Return once everything written is on the server's disk."""
        opened = self._open[fi.fh]
        with opened.lock:
            self._commit(opened)

    def flush(self, path: str | None, fi: Any) -> None:
        """At every close: whoever opens the file afterwards, anywhere, reads what was written."""
        self.fsync(path, 0, fi)

    def release(self, path: str | None, fi: Any) -> None:
        """The last close."""
        with self._lock:
            self._open.pop(fi.fh, None)
