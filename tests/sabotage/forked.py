"""Pytest, run again and again: each time in a fork of a process that has imported what takes longest.

More than half of what it takes to judge a few scenarios are imports. Nothing of ours is imported beforehand: pytest
rewrites the assertions of steps, and must come to them first.
"""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

END_TIMEOUT_S = 5  # a Ctrl-C has reached it too
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "bs4",
        "cloudflare.resources",
        "cryptography.x509",
        "in_toto_attestation",
        "jwt",
        "kubernetes.client",
        "kubernetes.stream",
        "mako.lookup",
        "proxmoxer",
        "pymysql",
        "pytest",
        "pytest_bdd",
        "rich.console",
        "securesystemslib.signer",
        "testinfra",
        "xdist.plugin",
    ]
)


class TimedOut(Exception):
    """The run did not end in time, and was ended."""


def run(arguments: Sequence[str], folder: Path, said: Path, timeout_s: float) -> int:
    """Pytest's exit code, run with `arguments` in `folder`; what it prints is in the file `said`. Raises TimedOut."""
    said.touch()
    process = FORKS.Process(target=_pytest, args=(arguments, folder, said))
    process.start()
    try:
        process.join(timeout_s)
        if process.exitcode is None:
            raise TimedOut(f"did not end within {timeout_s:g} s")
        return process.exitcode
    except KeyboardInterrupt:
        process.join(END_TIMEOUT_S)
        raise
    finally:
        process.kill()
        process.join()


def _pytest(arguments: Sequence[str], folder: Path, said: Path) -> None:
    import pytest  # noqa: PLC0415 - by the child

    with said.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(folder)
    sys.exit(pytest.main([*arguments]))
