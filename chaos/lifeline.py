"""The pipe between a drill and the processes that it starts: a plan goes through it, and its end ends them.

So none of them outlives a drill that was killed, and no secret is in a process list.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pydantic import BaseModel


class Lost(Exception):
    """A recording process did not come to its end in good order: what it recorded may not be all."""


CHECKOUT = Path(__file__).resolve().parent.parent
END_TIMEOUT_S = 75.0  # whoever writes waits for an answer up to a minute


def listen(pipe: TextIO, stop: threading.Event) -> str:
    """The plan, in the pipe's first line; from then on the pipe's end sets `stop`."""
    plan = pipe.readline()

    def watch() -> None:
        # Below Python's buffer, whose lock a thread would still hold when the process ends.
        while os.read(pipe.fileno(), 1024):
            pass
        stop.set()

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
    return plan


@contextmanager
def helper(module: str, plan: BaseModel, file: Path) -> Iterator["subprocess.Popen[str]"]:
    """A recording process at work, ended in good order afterwards; raises Lost where it did not end so."""
    command = [sys.executable, "-m", module, str(file.absolute())]
    with subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.write(plan.model_dump_json() + "\n")
        process.stdin.flush()
        try:
            yield process
        finally:
            process.stdin.close()
            try:
                process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.returncode:
            raise Lost(f"{module} ended with exit code {process.returncode}")
