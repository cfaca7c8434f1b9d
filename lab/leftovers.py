"""What a lab leaves on the machine: found from outside, whoever started it, and cleared when it is dead."""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

from lab import loop, namespace, sysctl
from lab.cgroup import Cgroup
from lab.lock import recorded_owner
from lab.paths import Paths
from provisioning.poll import NotYet, poll

DELETED = " (deleted)"  # how the kernel marks a backing file that has no name any more


@dataclass(frozen=True)
class Leftovers:
    """Everything of a lab, alive or dead, that is on the machine outside its state and cache directories."""

    processes: tuple[int, ...] = ()
    mounts: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    loop_devices: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        counts = ((field.name.replace("_", " "), getattr(self, field.name)) for field in fields(self))
        return ", ".join(f"{len(found)} {what}" for what, found in counts if found) or "nothing"


def mounts_below(mountinfo: str, directories: tuple[Path, ...]) -> list[str]:
    """Find mount points at or below the directories, innermost first, in the text of /proc/PID/mountinfo."""
    points = [line.split()[4].replace("\\040", " ") for line in mountinfo.splitlines()]
    inside = [p for p in points if any(Path(p).is_relative_to(directory) for directory in directories)]
    return list(reversed(inside))


def backed_by(loops: dict[str, str], directories: tuple[Path, ...]) -> list[str]:
    """Find the loop devices (device name to backing file) whose file lies, or lay, in the directories."""
    return [
        device
        for device, file in loops.items()
        if any(Path(file.removesuffix(DELETED)).is_relative_to(directory) for directory in directories)
    ]


def inspect(paths: Paths) -> Leftovers:
    """Look for everything of a lab of this runtime directory; run as root, in the machine's own namespaces."""
    members = Cgroup(paths.run.name).members()
    directories = _directories(paths)
    files = [paths.run, Path("/run/lxc/lock") / str(paths.run).lstrip("/")]
    return Leftovers(
        processes=tuple(sorted(members)),
        mounts=tuple(mounts_below(Path("/proc/self/mountinfo").read_text(), directories)),
        namespaces=tuple(sorted(_foreign_namespaces(members))),
        cgroups=tuple(str(path) for path in Cgroup(paths.run.name).paths()),
        loop_devices=tuple(backed_by(loop.devices(), directories)),
        files=tuple(str(file) for file in files if file.exists()),
    )


def clear(paths: Paths, keep_lock: bool = False) -> Leftovers:
    """Remove what a dead lab left and return what that was; the caller has seen that no lab is alive.

    Disks and configurations (the state directory) are not leftovers. `keep_lock` spares the lock file, for a
    lab that holds it and is about to start. Raises OSError or DeadlineExceeded when something will not go.
    """
    found = inspect(paths)
    cgroup = Cgroup(paths.run.name)
    cgroup.kill()
    cgroup.remove()
    for mount in found.mounts:
        namespace.unmount(Path(mount))
    # Most went with the mounts of the processes killed above.
    for device in backed_by(loop.devices(), _directories(paths)):
        loop.release(Path("/dev") / device)
    sysctl.restore(paths.run / "sysctl.json")
    shutil.rmtree(Path("/run/lxc/lock") / str(paths.run).lstrip("/"), ignore_errors=True)
    if paths.run.exists():
        for entry in paths.run.iterdir():
            if keep_lock and entry.name == "lock":
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        if not keep_lock:
            paths.run.rmdir()

    def gone() -> bool:
        left = replace(inspect(paths), files=())
        if left:
            raise NotYet(str(left))
        return True

    # The kernel takes a namespace's mounts and loop devices apart a moment after its last process.
    poll("nothing left of the lab", gone, timeout_s=10, interval_s=0.05)
    return found


def _directories(paths: Paths) -> tuple[Path, ...]:
    """Name the directories whose mounts and images are the lab's: a dead one may have had another state."""
    owner = recorded_owner(paths)
    return (paths.run, paths.state, *([Path(owner.state)] if owner else []))


def _foreign_namespaces(pids: frozenset[int]) -> set[str]:
    own = {os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "mnt")}
    found = set()
    for pid in pids:
        for kind in ("net", "mnt"):
            with suppress(FileNotFoundError, ProcessLookupError):
                found.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
    return found - own
