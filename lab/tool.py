"""Programs of this machine's system, run to their end."""

import subprocess
from pathlib import Path


def run(*argv: str | Path, stdin: str | None = None, most: int = 0) -> str:
    """What a program prints that ends with `most` at most; raises OSError with the last that it said."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if not 0 <= done.returncode <= most:
        said = (done.stderr.strip() or done.stdout.strip()).replace("\n", "; ")[-500:]
        raise OSError(f"{argv[0]}: {said or f'exit {done.returncode}'}")
    return done.stdout
