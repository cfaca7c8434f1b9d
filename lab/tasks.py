"""Long work: each task has a UPID, runs in a thread of its own, and its record outlives the daemon."""

import itertools
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import quote

import httpx

from lab.driver import DriverError
from lab.durable import write_json
from lab.refusal import Refusal

Log = Callable[[str], None]
UPID = re.compile(r"UPID:([^:\s]+):([0-9A-F]{8}):([0-9A-F]{8,9}):([0-9A-F]{8}):([^:\s/]+):([^:\s/]*):([^:\s/]+):")
KEPT = 1000
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Task:
    """One task; times in seconds since 1970, `exitstatus` None while it runs."""

    upid: str
    node: str
    pid: int
    pstart: int
    starttime: int
    type: str
    id: str
    user: str
    log: tuple[str, ...] = ()
    endtime: int | None = None
    exitstatus: str | None = None


class Tasks:
    """Runs tasks and remembers the last thousand, each in a file of its own."""

    def __init__(self, directory: Path, node: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._node = node
        self._guard = threading.Lock()
        self._pids = itertools.count(os.getpid())
        self._threads: dict[str, threading.Thread] = {}
        self._closed = False
        found = (json.loads(path.read_text()) for path in directory.glob("*.json"))
        tasks = [Task(**{**record, "log": tuple(record["log"])}) for record in found]
        self._tasks = {task.upid: task for task in sorted(tasks, key=lambda task: (task.starttime, task.pid))}
        for task in tasks:
            if task.exitstatus is None:
                self._finish(task.upid, INTERRUPTED)

    def __iter__(self) -> Iterator[Task]:
        with self._guard:
            return iter(tuple(self._tasks.values()))

    def get(self, upid: str) -> Task:
        """Find a task; raises PVE's refusal for a malformed or unknown UPID."""
        if not UPID.fullmatch(upid):
            raise Refusal(400, "Parameter verification failed.", {"upid": "unable to parse worker upid"})
        with self._guard:
            task = self._tasks.get(upid)
        if task is None:
            raise Refusal(400, "Parameter verification failed.", {"upid": "no such task"})
        return task

    def start(self, kind: str, ident: str, user: str, body: Callable[[Log], None]) -> str:
        """Run `body(log)` in a thread and return the UPID.

        It ends OK, or with the text of a Refusal, DriverError, OSError or HTTP error as its exit status.
        """
        ident = quote(ident, safe="@")  # a colon, slash or space would break the UPID apart
        pid, pstart, now = next(self._pids), int(time.monotonic() * 100) & 0xFFFFFFFF, int(time.time())
        upid = f"UPID:{self._node}:{pid:08X}:{pstart:08X}:{now:08X}:{kind}:{ident}:{user}:"
        task = Task(upid, self._node, pid, pstart, now, kind, ident, user)
        thread = threading.Thread(target=self._run, args=(upid, body), name=f"task {kind} {ident}", daemon=True)
        with self._guard:
            if self._closed:
                raise Refusal(503, "the lab is going down: no new task is taken")
            self._tasks[upid] = task
            self._save(task)
            self._prune()
            self._threads[upid] = thread
            thread.start()
        return upid

    def wait(self, upid: str, timeout_s: float | None = None) -> Task:
        """Wait for a task to end, `timeout_s` at most, and return its record as it is then."""
        with self._guard:
            thread = self._threads.get(upid)
        if thread:
            thread.join(timeout_s)
        return self.get(upid)

    def close(self, timeout_s: float) -> None:
        """Take no new task and give running ones `timeout_s` in all to end."""
        with self._guard:
            self._closed = True
            threads = tuple(self._threads.values())
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def running(self, kind: str, ident: str) -> bool:
        """Whether a task of this kind is under way for `ident`."""
        return any(task.exitstatus is None and (task.type, task.id) == (kind, ident) for task in self)

    def _run(self, upid: str, body: Callable[[Log], None]) -> None:
        status = "worker died of a fault in the lab itself: see its log"
        try:
            body(lambda line: self._log(upid, line))
            status = "OK"
        except (Refusal, DriverError, OSError, httpx.HTTPError) as error:
            status = str(error).strip() or type(error).__name__
        finally:
            self._finish(upid, status)

    def _log(self, upid: str, line: str) -> None:
        with self._guard:
            task = self._tasks[upid]
            self._tasks[upid] = replace(task, log=(*task.log, *line.splitlines()))

    def _finish(self, upid: str, status: str) -> None:
        last = "TASK OK" if status == "OK" else f"TASK ERROR: {status}"
        self._log(upid, last)
        with self._guard:
            task = replace(self._tasks[upid], exitstatus=status, endtime=int(time.time()))
            self._tasks[upid] = task
            self._threads.pop(upid, None)
            self._save(task)

    def _save(self, task: Task) -> None:
        write_json(self._directory / f"{task.upid}.json", asdict(task))

    def _prune(self) -> None:
        surplus = len(self._tasks) - KEPT
        ended = (upid for upid, task in self._tasks.items() if task.exitstatus is not None)
        for upid in tuple(itertools.islice(ended, max(0, surplus))):
            del self._tasks[upid]
            (self._directory / f"{upid}.json").unlink(missing_ok=True)
