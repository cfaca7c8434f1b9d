"""mount.nfs: `python3 -m nfs SERVER:PATH FOLDER [-sfnv] [-o OPTIONS]`, as mount(8) calls it.

Returns when the mounted folder answers; the file system goes on in a process of its own until it is unmounted.
"""

import os
import sys
import time
from dataclasses import dataclass

import fusepy

from .filesystem import FileSystem
from .protocol import ENCODING, MOUNT, MOUNT_VERSION, NFS, NFS_PORT, NFS_VERSION, Server, root_handle
from .rpc import Away, Caller, Client, Refused, ports

MOUNT_FAILED = 32  # mount(8)
USAGE = 1
ROOT = Caller(0, 0)
# nfs(5): tenths of a second for TCP, and how often a soft mount asks again; minutes that a mount is tried for.
TIMEO, RETRANS, RETRY_MIN = 600, 2, 2
ANSWER_S = 5.0


@dataclass(frozen=True)
class Options:
    """What of nfs(5) matters here; times in seconds. `patience_s` is None for a hard mount."""

    read_only: bool
    patience_s: float | None
    retry_s: float
    cached_s: float
    port: int
    mount_port: int


def parse(words: list[str]) -> Options:
    """Options as nfs(5) has them; what says nothing to this client is passed over. Raises ValueError. Pure."""
    given = {word.partition("=")[0]: word.partition("=")[2] for word in words if word}
    version = given.get("nfsvers", given.get("vers", "3"))
    if version.split(".")[0] != "3":
        raise ValueError(f"this client speaks NFS version 3 only, and version {version} was asked for")
    timeo, retrans = int(given.get("timeo", TIMEO)), int(given.get("retrans", RETRANS))
    return Options(
        read_only="ro" in given,
        patience_s=timeo / 10 * (retrans + 1) if "soft" in given else None,
        retry_s=60.0 * int(given.get("retry", RETRY_MIN)),
        cached_s=0.0 if "noac" in given else float(given.get("actimeo", 10)),
        port=int(given.get("port", 0)),
        mount_port=int(given.get("mountport", 0)),
    )


def connect(host: str, path: str, options: Options) -> Server:
    """The export; tried until `retry_s` has passed while the server is away. Raises OSError with its reason."""
    until_s = time.monotonic() + options.retry_s
    while True:
        try:
            mount_port = options.mount_port or ports(host, [(MOUNT, MOUNT_VERSION)], ANSWER_S)[0]
            if not mount_port:
                raise Refused("the server offers no MOUNT service of version 3 over TCP")
            root = root_handle(host, mount_port, path, ROOT, ANSWER_S)
            port = options.port or ports(host, [(NFS, NFS_VERSION)], ANSWER_S)[0] or NFS_PORT
            return Server(Client(host, port, options.patience_s), root)
        except Away:
            if time.monotonic() > until_s:
                raise


def serve(host: str, path: str, target: str, options: Options, tell: int) -> None:
    """Mount and answer the kernel until unmounted; what keeps it from mounting goes into the pipe `tell`."""
    try:
        server = connect(host, path, options)
        fusepy.FUSE(
            FileSystem(server),
            os.fsencode(target).decode(ENCODING),
            raw_fi=True,
            encoding=ENCODING,
            foreground=True,
            fsname=f"{host}:{path}",
            subtype="nfs",
            allow_other=True,
            default_permissions=True,
            use_ino=True,
            nonempty=True,
            big_writes=True,
            max_read=131072,
            attr_timeout=options.cached_s,
            entry_timeout=options.cached_s,
            negative_timeout=min(options.cached_s, 3.0),
            ro=options.read_only,
        )
    except (OSError, RuntimeError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        os.write(tell, reason.encode())


def mounted(target: str) -> bool:
    """Whether `target` is a mount of ours, by the kernel's list."""
    with open("/proc/self/mountinfo") as mounts:
        rows = [line.split() for line in mounts]
    name = target.replace("\\", "\\134").replace(" ", "\\040")
    return any(row[4] == name and row[row.index("-") + 1] == "fuse.nfs" for row in rows)


def await_answer(target: str, told: int) -> str:
    """Empty once the mounted folder answers; else why it never will."""
    os.set_blocking(told, False)
    while True:
        try:
            text = os.read(told, 1000)
        except BlockingIOError:
            if mounted(target):
                os.statvfs(target)
                return ""
            time.sleep(0.02)
            continue
        return text.decode() or "the file system ended before it was mounted"


def main() -> int:
    """Mount; the exit code is mount(8)'s."""
    words, options, names = iter(sys.argv[1:]), [], []
    for word in words:
        if word == "-o":
            options += next(words, "").split(",")
        elif not word.startswith("-"):
            names.append(word)
    if len(names) != 2 or ":" not in names[0]:
        sys.stderr.write("usage: mount.nfs SERVER:PATH FOLDER [-o OPTIONS]\n")
        return USAGE
    (host, _, path), target = names[0].rpartition(":"), os.path.realpath(names[1])
    try:
        parsed = parse(options)
    except ValueError as error:
        sys.stderr.write(f"mount.nfs: {error}\n")
        return USAGE
    told, tell = os.pipe()
    if os.fork() == 0:
        os.close(told)
        os.setsid()
        os.chdir("/")
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nothing, standard)
        serve(host, path, target, parsed, tell)
        os._exit(0)
    os.close(tell)
    if reason := await_answer(target, told):
        sys.stderr.write(f"mount.nfs: {names[0]} on {target}: {reason}\n")
        return MOUNT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
