"""The lab's sealed world: private network and mount namespaces, and the system calls that they need."""

import ctypes
import os
from pathlib import Path

CLONE_NEWNS = 0x00020000  # linux/sched.h
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000  # linux/mount.h
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def mount(source: str, target: Path, kind: str = "none", flags: int = 0, options: str = "") -> None:
    """Put a file system in place, as the system call of this name does; raises OSError naming the target."""
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode(), flags, options.encode() or None)
    _check(_libc.mount(*arguments), f"mount {kind} on {target}")


def unmount(target: Path) -> None:
    """Detach a mount and what lies below it at once, also when in use; raises OSError."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"unmount {target}")


def unmount_all(target: Path) -> None:
    """Detach every mount stacked on `target`, working or not; none is no error. Raises OSError."""
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    for _ in [point for point in points if point == str(target)]:
        unmount(target)


def join(pid: int) -> None:
    """Move the calling thread into the network namespace of `pid`; threads it starts later follow.

    Raises OSError: EPERM when not root, ENOENT when the process is gone.
    """
    with Path(f"/proc/{pid}/ns/net").open() as handle:
        join_network(handle.fileno())


def join_network(descriptor: int) -> None:
    """Move the calling thread into the network namespace that is open as `descriptor`; raises OSError."""
    _check(_libc.setns(descriptor, CLONE_NEWNET), "join of a network namespace")


def leave_network() -> None:
    """Move the calling thread into a new network namespace with nothing in it; raises OSError."""
    _check(_libc.unshare(CLONE_NEWNET), "new network namespace")


def in_network_of(pid: int) -> bool:
    """Say whether the calling thread is in the network namespace of `pid`; raises OSError when it is gone."""
    return os.readlink("/proc/thread-self/ns/net") == os.readlink(f"/proc/{pid}/ns/net")


def enter(scratch: Path) -> None:
    """Leave the machine's network and mounts for private ones; call while there is one thread only.

    `scratch` is an existing directory outside /sys. LXC looks bridges up in /sys/class/net, so /sys becomes a
    fresh sysfs of the new network namespace, with the machine's cgroup mounts put back where guests expect
    them. Nothing done here is seen outside, and all of it ends with its last process.
    """
    _check(_libc.unshare(CLONE_NEWNS | CLONE_NEWNET), "new network and mount namespace")
    mount("none", Path("/"), flags=MS_REC | MS_PRIVATE)
    cgroups = Path("/sys/fs/cgroup")
    mount(str(cgroups), scratch, flags=MS_BIND | MS_REC)
    unmount(Path("/sys"))
    mount("sysfs", Path("/sys"), "sysfs")
    mount(str(scratch), cgroups, flags=MS_BIND | MS_REC)
    unmount(scratch)
