"""Where the lab keeps its things on this machine: one state, one runtime and one cache directory."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """The lab's directories: state survives `down`, run dies with the machine, cache can be made again.

    The last part of `run` also names the lab's cgroups, so a lab with another `run` is wholly apart.
    """

    state: Path
    run: Path
    cache: Path

    @classmethod
    def default(cls) -> "Paths":
        """Read HAPROOF_LAB_STATE, HAPROOF_LAB_RUN and XDG_CACHE_HOME; else the machine-wide defaults.

        State and run are per machine, not per checkout: there is one lab on a machine.
        """
        cache_home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return cls(
            state=Path(os.environ.get("HAPROOF_LAB_STATE", "/var/lib/haproof-lab")),
            run=Path(os.environ.get("HAPROOF_LAB_RUN", "/run/haproof-lab")),
            cache=Path(cache_home) / "haproof",
        )
