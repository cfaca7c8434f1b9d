"""A helper process of the daemon: started, its words logged, started again when it dies, ended at the end."""

import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

RESTART_DELAY_S = 1.0
END_TIMEOUT_S = 5.0


@dataclass
class Child:
    """One process kept running; `descriptors` stay open in it, `prepare` runs before each start.

    One that stands for what is on `another_machine` is given a processor before anything ordinary, where that is
    permitted: that this machine is busy is not to slow it. A niceness does not do: where eleven machines are at work,
    a process of -10 waits 6 ms each time it has something to do (Linux 6.18, two processors), an ordinary one 95 ms.
    """

    name: str
    argv: Sequence[str]
    descriptors: Sequence[int] = ()
    prepare: Callable[[], None] = lambda: None
    another_machine: bool = False
    _ending: threading.Event = field(default_factory=threading.Event)
    _process: subprocess.Popen[bytes] | None = None
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start it; raises OSError when it cannot be started the first time."""
        self._process = self._spawn()
        self._thread = threading.Thread(target=self._keep, name=self.name, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """End it for good: asked first, then killed."""
        self._ending.set()
        if self._process is None or self._thread is None:
            return
        self._process.terminate()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._thread.join(END_TIMEOUT_S)

    def _spawn(self) -> subprocess.Popen[bytes]:
        self.prepare()
        process = subprocess.Popen(
            self.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=self.descriptors,
            start_new_session=True,  # a Ctrl-C is the daemon's; it ends its children in order
        )
        if self.another_machine:
            with suppress(PermissionError, ProcessLookupError):
                least = os.sched_param(os.sched_get_priority_min(os.SCHED_RR))
                os.sched_setscheduler(process.pid, os.SCHED_RR, least)  # its threads take after it
        return process

    def _keep(self) -> None:
        log: Any = structlog.get_logger(child=self.name)
        while (process := self._process) is not None:
            log.info("started", pid=process.pid)
            if process.stdout:
                for line in process.stdout:
                    log.info("said", line=line.decode(errors="replace").rstrip())
            code = process.wait()
            log.info("ended", exit_code=code)
            # Waits the delay, or ends at once when the daemon does.
            if self._ending.wait(RESTART_DELAY_S):
                return
            try:
                self._process = self._spawn()
            except OSError as error:
                log.error("cannot be started again", cause=str(error))
