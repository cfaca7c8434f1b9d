"""Programs that the builders run: their output kept, shown when they fail, ended when the builder is."""

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tenacity import retry, retry_if_exception, stop_after_attempt, wait_fixed

from lab.cache import BuildError

# A server that does not answer may do so later; one that answers 403 or 404 will not.
PASSING = re.compile(
    r"timeout|timed out|deadline exceeded|connection (reset|refused)|unexpected EOF|: (429|50[0234])\b", re.IGNORECASE
)


def bound(argv: Sequence[str | Path]) -> list[str]:
    """The command line that kills `argv` when the thread that starts it ends, killed itself or not.

    Raises BuildError when its program is not installed.
    """
    words = [str(word) for word in argv]
    if shutil.which(words[0]) is None:
        raise BuildError(f"{words[0]} is not installed; run `make setup`, or `python -m lab doctor`")
    return ["setpriv", "--pdeathsig", "KILL", *words]


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout_s: float = 1800,
) -> str:
    """Run `argv` and return its standard output; raises BuildError with its last words when it fails."""
    try:
        done = subprocess.run(
            bound(argv),
            cwd=cwd,
            env={**os.environ, **(env or {})},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{_told(argv)} did not end within {timeout_s:.0f} s") from error
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        if "No space left on device" in last:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(argv[0]))
        raise BuildError(f"{_told(argv)} failed with exit code {done.returncode}:\n{last}")
    return done.stdout


def _told(argv: Sequence[str | Path]) -> str:
    return " ".join(str(word) for word in argv[:6])


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, BuildError) and bool(PASSING.search(str(error)))


# For what fetches from elsewhere: asked again when it was not answered, never when it was refused.
retried = retry(retry=retry_if_exception(_may_pass), stop=stop_after_attempt(4), wait=wait_fixed(5), reraise=True)
