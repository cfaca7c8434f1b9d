"""`make bench`: how long things take on this machine, as a table. Measures, never judges; not a test."""

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable
# Ends with the target gone, so that each line begins with what the line before it left.
CLONE_AND_ENTER = """
import time
from provisioning.machines import Machines, TemplateMade
from provisioning.machines import MachinesCloned, MachinesEntered, MachinesRunning, MachinesShaped
from provisioning.session import open_session
session = open_session("lab")
one = session.environment.cluster_machines[-1:]
context = Machines(session.environment, one, session.hypervisor, session.shell)
if TemplateMade(context).pending():
    TemplateMade(context).apply()
started = time.monotonic()
for action in (MachinesCloned(context), MachinesShaped(context), MachinesRunning(context), MachinesEntered(context)):
    if action.pending():
        action.apply()
print(time.monotonic() - started)
"""


def run(*command: str, env: dict[str, str] | None = None) -> str:
    """Run a command from the checkout and return what it printed; ends the benchmark when it fails."""
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def timed(*commands: Sequence[str]) -> float:
    """Seconds that the commands take one after another."""
    started = time.monotonic()
    for command in commands:
        run(*command)
    return time.monotonic() - started


def cold() -> float:
    """Seconds to build all that the mirror serves with neither our cache nor Go's; modules are downloaded as well."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", ignore_cleanup_errors=True) as empty:
        env = {
            "XDG_CACHE_HOME": empty,
            "GOCACHE": f"{empty}/go-build",
            "GOMODCACHE": f"{empty}/mod",
            "GOFLAGS": "-modcacherw",
        }
        started = time.monotonic()
        run(PYTHON, "-m", "lab.mirror", "build", env=env)
        return time.monotonic() - started


def memory_gib() -> float:
    """What the machine has in use, page cache left out (free(1): total less available)."""
    fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE))
    return (int(fields["MemTotal"]) - int(fields["MemAvailable"])) / 2**20


def lines(with_cold: bool) -> list[tuple[str, Callable[[], float], str, str]]:
    """What is measured, in order: what, how, the unit, and the most it should be."""
    pytest = [PYTHON, "-m", "pytest", "-q"]
    delete, up = [PYTHON, "-m", "lab", "down", "--delete"], [PYTHON, "-m", "lab", "up"]

    def enter_one() -> float:
        timed(delete, up)
        return float(run(PYTHON, "-c", CLONE_AND_ENTER))

    def from_nothing() -> float:
        timed(delete, up)
        return timed([*pytest, "-m", "acceptance"])

    return [
        *([("cold cache, everything built", cold, "s", "25 min")] if with_cold else []),
        ("clone + boot + SSH of one machine", enter_one, "s", "5 s"),
        ("warm cache, no machines → acceptance features judged", from_nothing, "s", "5 min"),
        ("second build, nothing to change", lambda: timed([PYTHON, "-m", "provisioning"]), "s", "20 s"),
        (
            "machines up → acceptance judged again",
            lambda: timed([*pytest, "--no-build", "-m", "acceptance"]),
            "s",
            "60 s",
        ),
        ("the same with the disruptive ones", lambda: timed([*pytest, "--no-build"]), "s", "4 min"),
        ("memory in use with all five nodes and the VIP", memory_gib, "GiB", "2.5 GiB"),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cold", action="store_true", help="also build everything without any cache (long)")
    arguments = parser.parse_args()
    machine = f"{os.cpu_count()} cores, kernel {platform.release()}, {datetime.now(UTC):%Y-%m-%d}"
    table = Table("what", "measured", "at most", title=machine)
    console = Console()
    for what, measure, unit, most in lines(arguments.cold):
        console.print(f"… {what}")
        table.add_row(what, f"{measure():.1f} {unit}", most)
    console.print(table)


if __name__ == "__main__":
    main()
