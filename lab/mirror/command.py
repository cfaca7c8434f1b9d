"""Programs that the builders run: their output kept, shown when they fail."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.cache import BuildError


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout_s: float = 1800,
) -> str:
    """Run `argv` and return its standard output; raises BuildError with its last words when it fails."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise BuildError(f"{words[0]} is not installed; run `make setup`, or `python -m lab doctor`") from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{words[0]} did not end within {timeout_s:.0f} s: {' '.join(words[:6])}") from error
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        if "No space left on device" in last:
            raise OSError(28, "No space left on device", words[0])
        raise BuildError(f"{' '.join(words[:6])} failed with exit code {done.returncode}:\n{last}")
    return done.stdout
