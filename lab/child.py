"""A helper process of the daemon: started, its words logged, started again when it dies, ended at the end."""

import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

RESTART_DELAY_S = 1.0
END_TIMEOUT_S = 5.0


@dataclass
class Child:
    """One process kept running; `descriptors` stay open in it, `prepare` runs before each start."""

    name: str
    argv: Sequence[str]
    descriptors: Sequence[int] = ()
    prepare: Callable[[], None] = lambda: None
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
        return subprocess.Popen(
            self.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=self.descriptors,
            start_new_session=True,  # a Ctrl-C is the daemon's; it ends its children in order
        )

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
