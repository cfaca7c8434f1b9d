"""Processes as the kernel tells of them (proc(5))."""

from pathlib import Path


def children(pid: int) -> list[int]:
    """Ids of the processes that `pid` started, by whichever of its threads; raises FileNotFoundError when it ends."""
    told = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(word) for line in told for word in line.split()]
