"""`python -m tests.sabotage.quiet`: an untouched target, judged again and again from its snapshot, cries no wolf.

Every second run has as many busy processes beside it as the machine has processors. Exit code 1 when any scenario
said anything but what it must, 2 when a run could not be made. The target is built, kept as it is then, and put back to
that before each run: it takes the environment's permission, and its name once more.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from rich.console import Console

from provisioning.report import Terminal
from tests.sabotage.features import every_scenario
from tests.sabotage.matrix import QUIET
from tests.sabotage.stage import UNPREPARED, NotJudged, Stage, prepared

RUNS = 10
NOT_JUDGED = 2


def spin() -> None:
    """Never rest."""
    while True:
        pass


@contextmanager
def busy() -> Iterator[None]:
    """As many busy processes as there are processors; they go with this one, and at the end of the block."""
    fork = multiprocessing.get_context("spawn")
    processes = [fork.Process(target=spin, daemon=True) for _ in range(os.cpu_count() or 1)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


@contextmanager
def calm() -> Iterator[None]:
    """Nothing beside it."""
    yield


def named(manners: set[str]) -> tuple[str, ...]:
    """Scenarios of these manners: acceptance, disruptive, drill."""
    return tuple(scenario.name for scenario in every_scenario() if scenario.tags & manners)


def main() -> int:
    """Prepare it, and judge it again and again."""
    parser = argparse.ArgumentParser(prog="python -m tests.sabotage.quiet", description=__doc__)
    parser.add_argument("--env", default="lab", help="environment to judge (default: lab)")
    parser.add_argument("--chaos", default="", metavar="NAME", help="the environment's name: yes, disrupt that one")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"how often (default: {RUNS})")
    parser.add_argument(
        "--manner",
        action="append",
        choices=["acceptance", "disruptive", "drill"],
        help="which scenarios (default: acceptance and disruptive)",
    )
    arguments = parser.parse_args()
    scenarios = named({*(arguments.manner or ("acceptance", "disruptive"))})
    try:
        stage = prepared(arguments.env, arguments.chaos, Terminal(Console(stderr=True)), keep=True)
        return certified(stage, scenarios, arguments.runs)
    except (NotJudged, *UNPREPARED) as error:
        sys.stderr.write(f"{error}\n")
        return NOT_JUDGED


def certified(stage: Stage, scenarios: Collection[str], runs: int) -> int:
    """Judge it so often, a line a run; returns the exit code, and raises what keeps a run from being one."""
    wolves = 0
    for number in range(1, runs + 1):
        stage.roll_back()
        began_s, beside = time.monotonic(), busy if number % 2 == 0 else calm
        with beside():
            found = stage.judge(scenarios)
        cried = {name: finding for name, finding in found.items() if finding.verdict not in QUIET}
        wolves += bool(cried)
        told = "; ".join(f"{name}: {f.verdict} {f.reason}" for name, f in cried.items()) or "quiet"
        took_s = time.monotonic() - began_s
        sys.stdout.write(f"run {number} ({beside.__name__}), {len(found)} scenarios in {took_s:.0f} s: {told}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{wolves} of {runs} runs cried wolf\n")
    return 1 if wolves else 0
