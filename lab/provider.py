"""Brings the lab up and down, and takes a runner into its network: what `hypervisor.provider = "lab"` means."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lab import doctor, leftovers, namespace
from lab.cache import BuildError
from lab.lock import LabBusyError, Owner, live_owner
from lab.mirror import content
from lab.paths import Paths
from provisioning.poll import DeadlineExceeded, NotYet, poll

FOLDER = Path(__file__).resolve().parent.parent
SHARE = "HAPROOF_LAB_SHARE"  # set to 1: use a lab that another checkout started
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 60.0

Progress = Callable[[str], None]


class LabError(Exception):
    """The lab cannot be brought up or down; the message says why and what to do."""


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def up(paths: Paths, *, share: bool = False, progress: Progress = _say, source: str = "build") -> Owner:
    """Bring the lab up if it is not, and return who runs it once its API answers.

    A lab of another checkout is used only with `share`; otherwise LabBusyError. Raises LabError when this
    machine lacks something or the daemon does not come up, and BuildError when the mirror's content cannot be
    made.
    """
    share = share or os.environ.get(SHARE) == "1"
    owner = live_owner(paths)
    if owner is None:
        _examine(paths, source)
        made = content.build(progress, paths, source)
        progress("starting the lab")
        daemon = _spawn(paths, made)
        try:
            _await_ready(paths, daemon)
        except DeadlineExceeded as error:
            raise LabError(f"the lab did not come up: {error}; see {paths.state}/lab.log") from error
        owner = live_owner(paths)
    elif owner.folder != str(FOLDER) and not share:
        raise LabBusyError(owner)
    else:
        _await_ready(paths, None)
    if owner is None:
        raise LabError(f"the lab ended as soon as it was up; see {paths.state}/lab.log")
    return owner


def down(paths: Paths) -> leftovers.Leftovers:
    """End the lab, dead or alive, whoever started it, and return what a dead one had left.

    Raises LabError when something will not go.
    """
    owner = live_owner(paths)
    if owner is not None:
        os.kill(owner.pid, signal.SIGTERM)
        try:
            poll("end of the lab", lambda: live_owner(paths) is None, timeout_s=END_TIMEOUT_S, interval_s=0.1)
        except DeadlineExceeded:
            os.kill(owner.pid, signal.SIGKILL)
    try:
        poll("end of the lab", lambda: live_owner(paths) is None, timeout_s=10, interval_s=0.05)
        found = leftovers.clear(paths)
    except (DeadlineExceeded, OSError, subprocess.CalledProcessError) as error:
        raise LabError(f"the lab is down but not all of it is gone: {error}") from error
    return found


def enter(**options: str) -> None:
    """Take the calling thread, and threads it starts later, into the lab's network; the lab is started if need be.

    Idempotent. Raises ProviderError.
    """
    # Brings the Kubernetes client with it, which the lab's own commands need not wait for.
    from provisioning.session import ProviderError  # noqa: PLC0415

    source = options.pop("source", "build")
    if options:
        raise ProviderError(f"the lab has no option {', '.join(sorted(options))}; expected: source")
    try:
        owner = up(Paths.default(), source=source)
        if not namespace.in_network_of(owner.pid):
            namespace.join(owner.pid)
    except (LabError, LabBusyError, BuildError, OSError) as error:
        raise ProviderError(str(error)) from error


def misses(paths: Paths, source: str = "build") -> list[str]:
    """Name what this machine lacks to build and run the lab, one sentence each."""
    return doctor.misses(doctor.examine(paths, content.is_built(paths, source)))


def _examine(paths: Paths, source: str) -> None:
    missing = misses(paths, source)
    if missing:
        raise LabError("this machine cannot run the lab:\n" + "\n".join(f"- {miss}" for miss in missing))


def _spawn(paths: Paths, made: Path) -> "subprocess.Popen[bytes]":
    paths.state.mkdir(parents=True, exist_ok=True)
    with (paths.state / "lab.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "lab", "serve", "--content", str(made)],
            cwd=FOLDER,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _await_ready(paths: Paths, daemon: "subprocess.Popen[bytes] | None") -> None:
    def ready() -> bool:
        # Two runs may bring the lab up at once: the slower one's daemon ends, and it uses the other's lab.
        if daemon is not None and daemon.poll() is not None and live_owner(paths) is None:
            log = paths.state / "lab.log"
            last = "; ".join(log.read_text(errors="replace").splitlines()[-3:])
            raise LabError(f"the lab's daemon ended at once (exit {daemon.returncode}); {log} says: {last}")
        if live_owner(paths) is None or not (paths.run / "ready").exists():
            raise NotYet("starting")
        return True

    poll("the lab's API", ready, timeout_s=START_TIMEOUT_S, interval_s=0.1)
