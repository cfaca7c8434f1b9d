"""How true the ruler is: outages of known length are made at the network, and measured as a drill measures them.

`make ruler` runs it in a network namespace of its own, in which nothing but loopback exists; it takes half an hour, a
third of it quiet. `--repeats 2 --quiet-s 5` is a quick look.
"""

import argparse
import http.server
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chaos.history import FILE, Header, History, Phase, Recorder
from chaos.lifeline import helper
from chaos.outage import Outage, of_history
from chaos.probe import Page, Plan
from tests.served import served

INTERVAL_S = 0.05
STEADY_S, BETWEEN_S, FLAP_S = 5.0, 2.0, 1.0
LENGTHS_S = (1.0, 3.0, 10.0)
WITHIN_SHARE = 0.95
DROP = (
    "add table inet ruler; add chain inet ruler in { type filter hook input priority 0; }; add rule inet ruler in drop"
)


@dataclass(frozen=True)
class Truth:
    """An outage that was made: its two ends, each known to the length of one command."""

    began_s: float
    ended_s: float

    @property
    def length_s(self) -> float:
        """How long it truly was."""
        return self.ended_s - self.began_s


@dataclass(frozen=True)
class Measured:
    """What the ruler made of the truth."""

    truths: tuple[Truth, ...]
    found: tuple[Outage, ...]

    def errors_s(self) -> list[float]:
        """Measured less true length, for each outage that was found once."""
        pairs = [(truth, self.of(truth)) for truth in self.truths]
        return [(o[0].ended_s or 0.0) - o[0].began_s - truth.length_s for truth, o in pairs if len(o) == 1]

    def of(self, truth: Truth) -> list[Outage]:
        """Outages that were found in its time."""
        return [o for o in self.found if o.began_s < truth.ended_s and (o.ended_s or o.began_s) > truth.began_s]

    @property
    def missed(self) -> int:
        """Outages that were made and not found, or found in pieces."""
        return sum(len(self.of(truth)) != 1 for truth in self.truths)

    @property
    def merged(self) -> int:
        """Outages that were found over more than one that was made."""
        return sum(sum(o in self.of(truth) for truth in self.truths) > 1 for o in self.found)

    @property
    def invented(self) -> int:
        """Outages that were found where none was made."""
        return sum(not any(o in self.of(truth) for truth in self.truths) for o in self.found)


class Quiet(http.server.BaseHTTPRequestHandler):
    """Answers everything, and says nothing of it."""

    def do_GET(self) -> None:
        """Two bytes."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def quiet() -> Iterator[int]:
    """A server on loopback; its port."""
    with served(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)) as server:
        yield server.server_port


def nft(command: str) -> float:
    """Change the packet filter of this namespace; the moment at which it was changed."""
    before_s = time.monotonic()
    subprocess.run(["nft", command], check=True)
    return (before_s + time.monotonic()) / 2


def passed(seconds: float) -> None:
    """Let time pass: it is what is measured."""
    threading.Event().wait(seconds)


def outage(seconds: float) -> Truth:
    """Drop every packet for so long."""
    began_s = nft(DROP)
    passed(seconds)
    return Truth(began_s, nft("delete table inet ruler"))


def measure(lengths_s: Sequence[float], between_s: float, quiet_s: float = 0.0) -> Measured:
    """Make the outages one after another, and measure them from a history, as a drill does."""
    with tempfile.TemporaryDirectory() as name, quiet() as port:
        folder = Path(name)
        recorder = Recorder.into(folder / FILE)
        plan = Plan(questions=(Page(layer="page", host="127.0.0.1", port=port, interval_s=INTERVAL_S, timeout_s=4),))
        header = {"drill": "ruler", "environment": "loopback", "seed": 0, "command": "make ruler"}
        intervals_s = {"page": INTERVAL_S}
        recorder.record(Header.model_validate({**header, "at_s": time.monotonic(), "intervals_s": intervals_s}))
        with helper("chaos.probe", folder / "probes.jsonl") as at_work:
            at_work.begin(plan)
            passed(1.0)
            recorder.record(Phase(name="steady", at_s=time.monotonic()))
            passed(STEADY_S)
            recorder.record(Phase(name="fault", at_s=time.monotonic()))
            passed(quiet_s)
            truths = []
            for seconds in lengths_s:
                truths.append(outage(seconds))
                passed(between_s)
        recorder.close()
        found, unjudged = of_history(History.read(folder))
    assert not unjudged, unjudged
    return Measured(tuple(truths), tuple(found["page"]))


def told(name: str, measured: Measured) -> bool:
    """A line of the table; whether the ruler is as true as it should be."""
    errors_s = measured.errors_s()
    share = sum(abs(error) <= INTERVAL_S for error in errors_s) / len(errors_s) if errors_s else 1.0
    bias = statistics.mean(errors_s) if errors_s else 0.0
    spread = statistics.pstdev(errors_s) if errors_s else 0.0
    sys.stdout.write(
        f"{name:<16}{len(measured.truths):>5}{1000 * bias:>9.0f}{1000 * spread:>9.0f}{100 * share:>9.0f} %"
        f"{measured.missed:>8}{measured.merged:>8}{measured.invented:>10}\n"
    )
    sys.stdout.flush()
    return share >= WITHIN_SHARE and not (measured.missed or measured.merged or measured.invented)


def main() -> int:
    """Measure and print; 1 when it is not as true as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.ruler", description=__doc__)
    parser.add_argument("--repeats", type=int, default=20, help="outages of each length (default: 20)")
    parser.add_argument("--quiet-s", type=float, default=600, help="seconds without any (default: 600)")
    arguments = parser.parse_args()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    sys.stdout.write(f"a probe every {1000 * INTERVAL_S:.0f} ms\n")
    sys.stdout.write("outages         made  bias ms   spread   within   missed  merged  invented\n")
    good = [told(f"of {s:g} s", measure([s] * arguments.repeats, BETWEEN_S)) for s in LENGTHS_S]
    good.append(told(f"flaps of {FLAP_S:g} s", measure([FLAP_S] * arguments.repeats, FLAP_S)))
    good.append(told(f"{arguments.quiet_s:g} quiet s", measure([], 0, arguments.quiet_s)))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
