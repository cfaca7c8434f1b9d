"""Other people's load generators, and ours beside them: vegeta, and Locust's own HttpUser.

`python -m tests.rivals maximum`, `added`, `agreement` or `stalled` prints figures; `make bench` uses them.
"""

import argparse
import csv
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from environments.model import Role, Visit
from load.arrivals import Shape, segments
from load.objective import Summary, summary
from load.plan import Plan
from load.record import Header, read
from load.run import Incomplete, run
from provisioning.session import open_session
from tests.answers import STALL_S, answering

VEGETA = "v12.13.0"
BUILD_TIMEOUT_S = 600
BEGIN_TIMEOUT_S = 60
PERCENTILES = (50.0, 95.0, 99.0)
STALL_AFTER_S = 5.0
TRIAL_S = 8.0
PAIRS = 5
FIRST_RATE = 200.0
NARROW = 1.06
CORES = {"answers": 0, "generator": 1}


def vegeta() -> Path:
    """The program, built from its source the first time; raises CalledProcessError."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "haproof" / "rivals" / VEGETA
    if not (cache / "vegeta").exists():
        command = ["go", "install", f"github.com/tsenart/vegeta/v12@{VEGETA}"]
        environment = {**os.environ, "GOBIN": str(cache), "CGO_ENABLED": "0", "GOFLAGS": ""}
        subprocess.run(command, env=environment, check=True, stdout=sys.stderr, timeout=BUILD_TIMEOUT_S)
    return cache / "vegeta"


@dataclass(frozen=True)
class Told:
    """What a generator says of the answers: how many, a second, and percentiles in milliseconds."""

    requests: int
    failed: int
    rate: float
    percentiles_ms: dict[float, float]


def exactly(sorted_ms: Sequence[float], percentile: float) -> float:
    """The nearest rank, as HdrHistogram counts."""
    return sorted_ms[max(0, math.ceil(len(sorted_ms) * percentile / 100) - 1)]


def vegetas(url: str, rate: float, duration_s: float, *, keep: bool = False, core: int | None = None) -> Told:
    """One attack of vegeta's at a constant rate."""
    program, pinned = str(vegeta()), [] if core is None else ["taskset", "-c", str(core)]
    attack = [*pinned, program, "attack", "-rate", f"{round(rate * 60)}/1m", "-duration", f"{duration_s:g}s"]
    attack += ["-timeout", "10s", f"-keepalive={str(keep).lower()}", "-redirects", "-1", "-http2=false"]
    found = subprocess.run(attack, input=f"GET {url}\n".encode(), capture_output=True, check=True).stdout
    encoded = subprocess.run([program, "encode", "-to", "csv"], input=found, capture_output=True, check=True).stdout
    rows = [(int(row[0]), int(row[1]), int(row[2])) for row in csv.reader(encoded.decode().splitlines())]
    latencies_ms = sorted(row[2] / 1e6 for row in rows)
    lasted_s = max(1e-9, (max(row[0] + row[2] for row in rows) - min(row[0] for row in rows)) / 1e9)
    return Told(
        len(rows),
        sum(row[1] != 200 for row in rows),
        len(rows) / lasted_s,
        {p: exactly(latencies_ms, p) for p in PERCENTILES},
    )


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """What this thread starts runs on that core only, as `taskset` has it for the others."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before if core is None else {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def ours(
    url: str,
    rate: float,
    duration_s: float,
    *,
    keep: bool = False,
    workers: int = 1,
    core: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Summary:
    """One run of ours at a constant rate, its master and its workers on one core where one is given.

    Raises Incomplete, and Refused where nobody was sent.
    """
    plan = Plan(
        url=url,  # type: ignore[arg-type]
        segments=segments(Shape.CONSTANT, rate, duration_s),
        weights={Visit.PAGE: 1},
        workers=workers,
        keep_connections=keep,
    )
    described = Header(
        environment="none",
        url=url,
        command="tests.rivals",
        began=datetime.now(UTC),
        segments=((duration_s, rate, rate),),
        workers=workers,
        weights={"page": 1},
    )
    with tempfile.TemporaryDirectory() as folder, on_core(core):
        run(plan, described, Path(folder) / "run", say)
        return summary(read(Path(folder) / "run"))


PLAIN = """
from locust import HttpUser, constant, task

class Plain(HttpUser):
    wait_time = constant(0)

    @task
    def page(self):
        self.client.get("/")
"""


def plain_rate(url: str, duration_s: float) -> float:
    """Requests a second by Locust's HttpUser, 50 of them who ask again as soon as they are answered."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "plain.py").write_text(PLAIN)
        command = ["taskset", "-c", str(CORES["generator"]), sys.executable, "-m", "locust", "--headless"]
        command += ["-f", f"{folder}/plain.py", "-H", url.rstrip("/"), "-u", "50", "-r", "50", "--only-summary"]
        command += ["--run-time", f"{duration_s:g}s", "--csv", f"{folder}/said", "--loglevel", "ERROR"]
        subprocess.run(command, check=True, capture_output=True)
        with (Path(folder) / "said_stats.csv").open() as file:
            return next(float(row["Requests/s"]) for row in csv.DictReader(file) if row["Name"] == "Aggregated")


def highest(delivered: Callable[[float], bool]) -> float:
    """The highest rate that is delivered, doubled and then halved in on."""
    low, high = 0.0, FIRST_RATE
    while delivered(high):
        low, high = high, high * 2
    while low == 0 or high / low > NARROW:
        middle = (low + high) / 2
        low, high = (middle, high) if delivered(middle) else (low, middle)
    return low


def our_highest(url: str) -> float:
    """Of one worker with kept connections, on one core: whatever is not delivered in time voids a trial."""

    def delivered(rate: float) -> bool:
        try:
            said = ours(url, rate, TRIAL_S, keep=True, core=CORES["generator"])
            return not (said.void or said.failed)
        except Incomplete:
            return False

    return highest(delivered)


def vegetas_highest(url: str) -> float:
    """On one core with kept connections: the rate it keeps up with."""
    return highest(lambda rate: vegetas(url, rate, TRIAL_S, keep=True, core=CORES["generator"]).rate > 0.98 * rate)


def maximum() -> dict[str, float]:
    """Requests a second that each sends from one core to a static answer."""
    with answering(core=CORES["answers"]) as (url, _):
        return {
            "haproof": our_highest(url),
            "Locust's HttpUser": plain_rate(url, TRIAL_S),
            "vegeta": vegetas_highest(url),
        }


def added(rate: float) -> dict[str, float]:
    """p99 in milliseconds of an answer that takes no time, at `rate`: by ours and by vegeta, by turns.

    The median of PAIRS runs of each: the tail of a single one is twice another's.
    """
    core = CORES["generator"]
    mine, theirs = [], []
    with answering(core=CORES["answers"]) as (url, _):
        for _ in range(PAIRS):
            mine.append(ours(url, rate, TRIAL_S, keep=True, core=core).percentiles_ms[99.0])
            theirs.append(vegetas(url, rate, TRIAL_S, keep=True, core=core).percentiles_ms[99.0])
    return {"haproof": statistics.median(mine), "vegeta": statistics.median(theirs)}


def both(url: str, rate: float, duration_s: float, stall: Callable[[], None] = lambda: None) -> tuple[Summary, Told]:
    """Ours and vegeta's at once, each at `rate`, so that both see one site; `stall` is called in the midst of it.

    Vegeta begins when ours has: that one has processes to start first, and how long they take is no part of this.
    """
    vegeta()
    begun = threading.Event()

    def heard(line: str) -> None:
        if re.search(r"[1-9]\d* requests", line):
            begun.set()

    with ThreadPoolExecutor(2) as pool:
        mine = pool.submit(ours, f"{url}?haproof", rate, duration_s, say=heard)
        mine.add_done_callback(lambda _: begun.set())
        begun.wait(BEGIN_TIMEOUT_S)
        timer = threading.Timer(STALL_AFTER_S, stall)
        timer.start()
        theirs = pool.submit(vegetas, f"{url}?vegeta", rate, duration_s)
        found = mine.result(), theirs.result()
    timer.join()
    return found


def ratios(mine: Summary, theirs: Told) -> dict[str, float]:
    """Ours as a share of vegeta's, by percentile."""
    return {f"p{p:g}": mine.percentiles_ms[p] / theirs.percentiles_ms[p] for p in PERCENTILES}


def at_vip(rate: float, duration_s: float, *, stalled: bool) -> dict[str, float]:
    """How both agree about the front page of the lab's site; stalled, its SQL node stands still for three seconds."""
    session = open_session("lab")
    environment = session.environment
    sql = environment.with_role(Role.NDB_SQL)[0]

    def stall() -> None:
        session.hypervisor.suspend(sql.vmid)
        threading.Event().wait(STALL_S)
        session.hypervisor.resume(sql.vmid)

    url = f"http://{environment.wordpress.vip}/"
    return ratios(*(both(url, rate, duration_s, stall) if stalled else both(url, rate, duration_s)))


def main() -> None:
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("maximum", "added", "agreement", "stalled"))
    parser.add_argument("--rate", type=float, default=8.0, help="requests a second by each (default: 8)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of asking at the VIP (default: 60)")
    told = parser.parse_args()
    vegeta()  # before anybody enters the lab's network, which nothing can be fetched from
    match told.what:
        case "maximum":
            found = maximum()
        case "added":
            found = added(told.rate)
        case what:
            found = at_vip(told.rate, told.seconds, stalled=what == "stalled")
    sys.stdout.writelines(f"{name}\t{value:.3f}\n" for name, value in found.items())


if __name__ == "__main__":
    main()
