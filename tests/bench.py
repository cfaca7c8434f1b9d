"""`make bench`: how long things take on this machine, as a table. Measures, never judges; not a test."""

import argparse
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Container, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lab import host
from load.record import FILE, End, Header, Sample, Tally
from load.report import PAGE
from tests import measures

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable
LATEST = "out/lab/latest"
# What the issue of the foundation asks of its own features, apart from the rest.
FOUNDATION = "(hypervisor or nodes or cluster or load_balancer)"
# A machine more is built by it, which that issue did not ask for.
GROWTH = "(disruptive and P13)"
# These features alone are the whole evidence for no promise, so that nothing fails and nothing is certified.
OF_FOUNDATION = (0, 6)


class Failed(Exception):
    """A command that is measured did not do its work: which, how it ended, and the end of what it said."""


def run(*command: str, env: dict[str, str] | None = None, ends: Container[int] = (0,)) -> str:
    """Run a command from the checkout and return what it printed; raises Failed when its exit code is another."""
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
    if done.returncode not in ends:
        raise Failed(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def timed(*commands: Sequence[str], ends: Container[int] = (0,)) -> float:
    """Seconds that the commands take one after another."""
    started = time.monotonic()
    for command in commands:
        run(*command, ends=ends)
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
    return host.memory().used / 2**30


def rivals(*options: str) -> dict[str, float]:
    """What `python -m tests.rivals` prints, by name."""
    printed = run(PYTHON, "-m", "tests.rivals", *options).splitlines()
    return {name: float(value) for name, _, value in (line.partition("\t") for line in printed)}


@cache
def maximum() -> dict[str, float]:
    """Requests a second from one core, by generator."""
    return rivals("maximum")


def added() -> float:
    """At half of our generator's highest rate, the p99 that it adds, as a share of what vegeta does."""
    found = rivals("added", "--rate", str(our_maximum() / 2))
    return found["haproof"] / found["vegeta"]


def apart(how: str) -> float:
    """By how much ours and vegeta differ about the site at p50, p95 or p99, wherever they differ most."""
    return 100 * max(abs(1 - ratio) for ratio in rivals(how).values())


@cache
def report_of_an_hour() -> tuple[float, float]:
    """Seconds to write the report of an hour at 500 requests a second, and the page's size in megabytes."""
    dice, tally = random.Random(1), Tally()
    for number in range(3600 * 500):
        tally.answered("page", number / 500, number / 500 + dice.lognormvariate(-3, 0.5))
    described = {"environment": "lab", "url": "http://192.0.2.1/", "command": "bench", "began": datetime.now(UTC)}
    shape = {"segments": ((3600.0, 500.0, 500.0),), "workers": 1, "weights": {"page": 1.0}}
    samples = [
        Sample(at_s=at_s, machine=f"machine{n}", cpu=dice.random()) for at_s in range(0, 3600, 2) for n in range(10)
    ]
    with tempfile.TemporaryDirectory() as folder:
        with (Path(folder) / FILE).open("w") as file:
            file.writelines(
                f"{line.model_dump_json()}\n"
                for line in (Header.model_validate(described | shape), *tally.lines(), *samples, End())
            )
        took_s = timed([PYTHON, "-m", "load", "report", folder])
        return took_s, (Path(folder) / PAGE).stat().st_size / 1e6


def lines(with_cold: bool) -> list[tuple[str, Callable[[], float], str, str]]:
    """What is measured, in order: what, how, the unit, and the bound it should keep.

    Each line begins with what the line before it left; the whole target is there from “warm cache” on.
    """
    lab, pytest = [PYTHON, "-m", "lab"], [PYTHON, "-m", "pytest", "-q"]
    judge = [*pytest, "--no-build", "-m"]

    def measured(name: str) -> float:
        return float(run(PYTHON, "-m", "tests.measures", name))

    def enter_one() -> float:
        timed([*lab, "down", "--delete"], [*lab, "up"])
        return measured("clone_and_enter_s")

    def undisturbed() -> float:
        timed([*lab, "down"])
        return our_maximum()

    def from_nothing() -> float:
        timed([*lab, "down", "--delete"], [*lab, "up"])
        return timed([*pytest, "-m", "acceptance"])

    def of_foundation(which: str) -> Callable[[], float]:
        return lambda: timed([*judge, which], ends=OF_FOUNDATION)

    def rollback() -> float:
        timed([*lab, "snapshot", "bench"])
        # Begun as what was switched off: the build waits until all is whole, and changes nothing.
        return timed([*lab, "rollback", "bench"], [*pytest, "-m", "acceptance"])

    return [
        *([("cold cache, everything built", cold, "s", "≤ 40 min")] if with_cold else []),
        *without_target(undisturbed),
        ("clone + boot + SSH of one machine", enter_one, "s", "≤ 5 s"),
        ("warm cache, no machines → whole target built and acceptance judged", from_nothing, "s", "≤ 8 min"),
        ("memory in use, whole target", memory_gib, "GiB", "≤ 6 GiB"),
        ("  of the five Kubernetes nodes", lambda: measured("nodes_memory_gib"), "GiB", "≤ 2.5 GiB"),
        ("front page at the VIP, one client, p50", lambda: measured("front_page_ms"), "ms", "≤ 100 ms"),
        ("front pages a second at the VIP", lambda: measured("front_pages_per_s"), "/s", "≥ 25 /s"),
        ("prober, 20 questions a second to each of ten layers", lambda: measured("prober_percent"), "%", "≤ 10 %"),
        ("  with the SSH clients by which it asks", lambda: measured("prober_and_clients_percent"), "%", ""),
        ("  all ten of them a page over a new connection", lambda: measured("prober_pages_percent"), "%", ""),
        ("  the same on loopback, without the lab's network", measures.prober_own_percent, "%", ""),
        ("second build, nothing to change", lambda: timed([PYTHON, "-m", "provisioning"]), "s", "≤ 20 s"),
        ("target up → acceptance judged again", lambda: timed([*judge, "acceptance"]), "s", "≤ 90 s"),
        ("  of the foundation alone", of_foundation(f"acceptance and {FOUNDATION}"), "s", "≤ 60 s"),
        (
            "  of the foundation, with the disruptive ones",
            of_foundation(f"{FOUNDATION} and not {GROWTH} or recovery"),
            "s",
            "≤ 4 min",
        ),
        ("everything off at once and on again → site answers", lambda: measured("cold_start_s"), "s", "≤ 90 s"),
        ("rollback to the built snapshot → acceptance judged again", rollback, "s", "≤ 3 min"),
        ("its certificate verified", lambda: timed([PYTHON, "-m", "certificate", "verify", LATEST]), "s", "≤ 2 s"),
        ("generator and vegeta differ about the front page", lambda: apart("agreement"), "%", "≤ 10 %"),
        ("  with its SQL node standing still for three seconds", lambda: apart("stalled"), "%", "≤ 10 %"),
    ]


def our_maximum() -> float:
    """Requests a second from one core, by ours."""
    return maximum()["haproof"]


def without_target(generator: Callable[[], float] = our_maximum) -> list[tuple[str, Callable[[], float], str, str]]:
    """What is measured with no target at all, `generator` first."""
    return [
        ("generator, requests a second from one core", generator, "/s", ""),
        ("  vegeta", lambda: maximum()["vegeta"], "/s", ""),
        ("  of Locust's HttpUser", lambda: our_maximum() / maximum()["Locust's HttpUser"], "times", "≥ 3"),
        ("  p99 added at half that rate, of vegeta's", added, "times", "≤ 1.2"),
        ("report of an hour at 500 requests a second", lambda: report_of_an_hour()[0], "s", "≤ 5 s"),
        ("  its page", lambda: report_of_an_hour()[1], "MB", "≤ 2 MB"),
    ]


def main() -> int:
    """Measure and print; a line that fails leaves the others as they are, and makes the exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cold", action="store_true", help="also build everything without any cache (long)")
    parser.add_argument("--no-target", action="store_true", help="only what needs no target")
    parser.add_argument("--from", dest="first", default="", metavar="WORDS", help="go on from the line that has them")
    arguments = parser.parse_args()
    rows = without_target() if arguments.no_target else lines(arguments.cold)
    begun = next((at for at, row in enumerate(rows) if arguments.first in row[0]), None)
    if begun is None:
        parser.error(f"no line has “{arguments.first}”; there are:\n" + "\n".join(row[0] for row in rows))
    machine = f"{os.cpu_count()} cores, kernel {platform.release()}, {datetime.now(UTC):%Y-%m-%d}"
    table = Table("what", "measured", "bound", title=machine)
    console = Console()
    failed = False
    for what, measure, unit, bound in rows[begun:]:
        console.print(f"… {what}")
        try:
            measured = f"{measure():.1f} {unit}"
        except Failed as error:
            console.print(str(error), markup=False)
            measured, failed = "failed", True
        console.print(f"  {measured}")
        table.add_row(what, measured, bound)
    console.print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
