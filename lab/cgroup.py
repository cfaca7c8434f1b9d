"""The lab's control groups: one subtree per mounted hierarchy holds, and so finds, everything of the lab.

cgroup v1 (each controller mounted apart), v2, and both at once are handled: a hierarchy is a mount point.
"""

import errno
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from provisioning.poll import NotYet, poll

# Joining one of these only marks a process as the lab's; the others (memory, cpu, ...) would also limit it.
MARKER_CONTROLLERS = frozenset({"freezer", "pids", "name=systemd"})

V1_CONTROLLERS = (
    *("blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb"),
    *("memory", "misc", "net_cls", "net_prio", "perf_event", "pids", "rdma"),
)


@dataclass(frozen=True)
class Hierarchy:
    """A mounted cgroup tree; `controllers` is empty for v2, whose files are the same for all."""

    path: Path
    controllers: frozenset[str]

    @property
    def unified(self) -> bool:
        """True for cgroup v2."""
        return not self.controllers


def parse_hierarchies(mounts: str) -> tuple[Hierarchy, ...]:
    """Read the cgroup mounts out of the text of /proc/mounts (proc(5)); each mount point once."""
    found: dict[Path, Hierarchy] = {}
    for line in mounts.splitlines():
        _, point, kind, options, *_ = line.split()
        if kind == "cgroup":
            names = {o for o in options.split(",") if o in V1_CONTROLLERS or o.startswith("name=")}
            found[Path(point)] = Hierarchy(Path(point), frozenset(names))
        elif kind == "cgroup2":
            found[Path(point)] = Hierarchy(Path(point), frozenset())
    return tuple(found.values())


def hierarchies() -> tuple[Hierarchy, ...]:
    """Read the hierarchies mounted in this mount namespace under /sys/fs/cgroup."""
    mounted = parse_hierarchies(Path("/proc/self/mounts").read_text())
    return tuple(h for h in mounted if h.path.is_relative_to("/sys/fs/cgroup"))


def shares_of(cpu_units: int) -> int:
    """What cgroup v1 calls a weight: an ordinary group, of 100 units, has cpu.shares 1024 (sched-design-CFS)."""
    return cpu_units * 1024 // 100


@dataclass(frozen=True)
class Cgroup:
    """The cgroup `name` (a path below the root, as "haproof-lab" or "haproof-lab/101") in every hierarchy."""

    name: str

    def child(self, name: str) -> "Cgroup":
        """Name a cgroup below this one."""
        return Cgroup(f"{self.name}/{name}")

    def paths(self) -> list[Path]:
        """List the directories of this cgroup that exist, one a hierarchy."""
        return [path for h in hierarchies() if (path := h.path / self.name).is_dir()]

    def find(self, file_name: str) -> Path | None:
        """Find a control file, whichever hierarchy has it."""
        return next((file for path in self.paths() if (file := path / file_name).exists()), None)

    def read(self, file_name: str) -> str | None:
        """What a control file says; None where there is none, or it goes while it is read: a machine that reboots."""
        file = self.find(file_name)
        with suppress(OSError):
            return file.read_text() if file else None
        return None

    def join(self, pid: int) -> None:
        """Mark `pid` as a member, in hierarchies where membership limits nothing; raises OSError."""
        for hierarchy in hierarchies():
            if hierarchy.unified or hierarchy.controllers <= MARKER_CONTROLLERS:
                path = hierarchy.path / self.name
                path.mkdir(parents=True, exist_ok=True)
                (path / "cgroup.procs").write_text(str(pid))

    def members(self) -> frozenset[int]:
        """List the processes in this cgroup and below it, in any hierarchy."""
        pids: set[int] = set()
        for path in self.paths():
            for directory, _, _ in os.walk(path):
                # A cgroup may vanish, or be a threaded one, between the walk and the read.
                with suppress(OSError):
                    pids.update(int(pid) for pid in Path(directory, "cgroup.procs").read_text().split())
        return frozenset(pids)

    def is_frozen(self) -> bool:
        """Say whether the freezer holds it."""
        if state := self.read("freezer.state"):
            return state.strip() == "FROZEN"
        return "frozen 1" in (self.read("cgroup.events") or "").splitlines()

    def freeze(self, frozen: bool) -> None:
        """Freeze or thaw every process in it, and wait until it is so; raises DeadlineExceeded."""
        if state := self.find("freezer.state"):
            state.write_text("FROZEN" if frozen else "THAWED")
        elif freeze := self.find("cgroup.freeze"):
            freeze.write_text("1" if frozen else "0")
        else:
            return
        what = f"cgroup {self.name} {'frozen' if frozen else 'thawed'}"
        poll(what, lambda: self.is_frozen() == frozen, timeout_s=10, interval_s=0.01)

    def weigh(self, cpu_units: int) -> None:
        """Set how much it counts where processors are shared out, 100 as an ordinary group; nothing without a share.

        Of cpu.weight (v2) a group has 10000 at most.
        """
        if shares := self.find("cpu.shares"):
            shares.write_text(str(shares_of(cpu_units)))
        elif weight := self.find("cpu.weight"):
            weight.write_text(str(min(cpu_units, 10_000)))

    def kill(self, timeout_s: float = 30) -> frozenset[int]:
        """Kill every member except the caller and wait until they are gone; returns whom it killed.

        Members are frozen while they are signalled, so that none can fork out of sight; SIGKILL reaches a v1
        frozen task once it is thawed. Raises DeadlineExceeded, naming who would not die.
        """
        killed: set[int] = set()

        def attempt() -> bool:
            members = self.members() - {os.getpid()}
            if not members:
                return True
            killed.update(members)
            own = os.getpid() in self.members()
            if not own:
                self._freeze_now("FROZEN", "1")
            for pid in members:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._freeze_now("THAWED", "0")
            raise NotYet(f"still alive: {sorted(members)}")

        poll(f"end of every process in cgroup {self.name}", attempt, timeout_s=timeout_s, interval_s=0.05)
        return frozenset(killed)

    def remove(self) -> None:
        """Remove the empty cgroup directories, deepest first; raises OSError when a member is left."""
        for path in self.paths():
            for directory, _, _ in os.walk(path, topdown=False):
                _remove_directory(Path(directory))

    def _freeze_now(self, v1: str, v2: str) -> None:
        # Guests have freezers of their own below; those may be frozen apart (a suspended guest).
        for path in self.paths():
            for directory, _, files in os.walk(path):
                for file_name, value in (("freezer.state", v1), ("cgroup.freeze", v2)):
                    if file_name in files:
                        with suppress(OSError):
                            Path(directory, file_name).write_text(value)


def _remove_directory(path: Path) -> None:
    def attempt() -> bool:
        try:
            path.rmdir()
        except FileNotFoundError:
            return True
        except OSError as error:
            # The kernel lets go of a dead task's cgroup a moment after the task was reaped.
            if error.errno == errno.EBUSY:
                raise NotYet(f"busy, members {(path / 'cgroup.procs').read_text().split()}") from error
            raise
        return True

    poll(f"removal of cgroup {path}", attempt, timeout_s=10, interval_s=0.02)


@dataclass(frozen=True)
class Membership:
    """Which cgroup a process was in, by hierarchy, before it joined the lab's; so that it can go back."""

    before: tuple[tuple[Path, str], ...]

    @classmethod
    def of(cls, pid: int) -> "Membership":
        """Read /proc/PID/cgroup (cgroups(7))."""
        lines = (line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
        homes = {frozenset(c for c in controllers.split(",") if c): path for _, controllers, path in lines}
        return cls(tuple((h.path, homes[h.controllers]) for h in hierarchies() if h.controllers in homes))

    def restore(self, pid: int) -> None:
        """Put `pid` back, or to the root where its cgroup is gone; raises OSError."""
        now = Membership.of(pid)
        for point, path in set(self.before) - set(now.before):
            home = point / path.lstrip("/")
            (home if home.is_dir() else point).joinpath("cgroup.procs").write_text(str(pid))
