"""What the runner keeps of an environment between runs: conveniences, all of which can be made anew."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path


class Busy(Exception):
    """Another run holds the environment; the message names it."""


@dataclass(frozen=True)
class State:
    """The folder of one environment under the XDG state folder."""

    folder: Path

    @classmethod
    def of(cls, environment_name: str) -> "State":
        """The state of `environment_name`; the folder is made, readable by its owner only."""
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        folder = base / "haproof" / environment_name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return cls(folder)

    @property
    def known_hosts(self) -> Path:
        """Host keys, pinned at first contact."""
        return self.folder / "known_hosts"

    @property
    def kubeconfig(self) -> Path:
        """The cluster's administrator, as the runner reaches it."""
        return self.folder / "kubeconfig"

    @property
    def service_token(self) -> Path:
        """What this suite shows to Access."""
        return self.folder / "service-token.json"

    @property
    def broken(self) -> Path:
        """What is broken on purpose just now (see `chaos.fault.Journal`)."""
        return self.folder / "broken.json"

    @contextmanager
    def locked(self, doing: str) -> Iterator[None]:
        """Hold the environment while `doing`; raises Busy naming who holds it already."""
        with (self.folder / "lock").open("a+") as lock:
            try:
                flock(lock, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise Busy(
                    f"this environment is in use by {lock.read().strip() or 'another run'}; wait for it"
                ) from None
            lock.truncate(0)
            started = datetime.now(UTC).isoformat(timespec="seconds")
            json.dump({"pid": os.getpid(), "folder": str(Path.cwd()), "doing": doing, "started": started}, lock)
            lock.flush()
            yield
