"""Processes as the kernel tells of them (proc(5))."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def children(pid: int) -> list[int]:
    """Ids of the processes that `pid` started, by whichever of its threads; raises FileNotFoundError when it ends."""
    told = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(word) for line in told for word in line.split()]


def named(name: str) -> Iterator[int]:
    """Ids of the processes that run a program of that name; others come and go meanwhile."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and (entry / "comm").read_text().strip() == name:
                yield int(entry.name)
