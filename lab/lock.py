"""The lab's lock: at most one lab runs on a machine (in a runtime directory), and it says who it is."""

import fcntl
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from lab.paths import Paths


@dataclass(frozen=True)
class Owner:
    """Who holds or held the lock; `started` is ISO 8601 UTC, `folder` the checkout it was started from."""

    pid: int
    folder: str
    started: str
    state: str


class LabBusyError(Exception):
    """Another lab is up on this machine; the message names its process and folder."""

    def __init__(self, owner: Owner | None) -> None:
        self.owner = owner
        who = f"process {owner.pid} of {owner.folder}, since {owner.started}" if owner else "just starting"
        super().__init__(f"a lab is up on this machine already ({who}): use it, or end it with `python -m lab down`")


class Lock:
    """The lock while it is held; a dead process holds nothing, however it died."""

    def __init__(self, paths: Paths, folder: Path) -> None:
        """Take the lock; raises LabBusyError when a live lab has it."""
        paths.run.mkdir(parents=True, exist_ok=True)
        self._path = paths.run / "lock"
        self._file = self._path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A lab that just ended may have removed the very file that was opened here.
            if not self._path.exists() or not os.path.samestat(os.fstat(self._file.fileno()), self._path.stat()):
                raise BlockingIOError
        except BlockingIOError:
            self._file.close()
            raise LabBusyError(recorded_owner(paths)) from None
        started = datetime.now(UTC).isoformat("T", "seconds")
        self.previous = recorded_owner(paths)
        self.owner = Owner(os.getpid(), str(folder), started, str(paths.state))

    def announce(self) -> None:
        """Write who holds it, once the previous holder's leftovers are gone."""
        self._file.truncate(0)
        self._file.write(json.dumps(asdict(self.owner)))
        self._file.flush()

    def release(self) -> None:
        """Let go and leave no file."""
        self._path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty: whatever it is, it is not the lock's
            self._path.parent.rmdir()
        self._file.close()


def recorded_owner(paths: Paths) -> Owner | None:
    """Read who wrote the lock file last, dead or alive; None when nobody did."""
    try:
        text = (paths.run / "lock").read_text()
    except FileNotFoundError:
        return None
    return Owner(**json.loads(text)) if text else None


def is_held(paths: Paths) -> bool:
    """Say whether a live lab holds the lock."""
    try:
        with (paths.run / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def live_owner(paths: Paths) -> Owner | None:
    """Read who runs the lab now; None when no lab is up.

    While a new lab clears what a dead one left, the file still names the dead one: that is no owner.
    """
    owner = recorded_owner(paths) if is_held(paths) else None
    return owner if owner and Path(f"/proc/{owner.pid}").exists() else None
