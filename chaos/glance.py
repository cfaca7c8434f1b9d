"""The line that is shown while a drill runs: which layers fail just now, and since when."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from chaos.history import FILE, Event, Phase, Probe
from chaos.tail import Tail

RECENT_S, UPDATE_S = 3.0, 0.5


@dataclass
class Glance:
    """What was heard of each layer: its last answer, and its latest failures."""

    answered_s: dict[str, float] = field(default_factory=dict)
    recent: list[Probe] = field(default_factory=list)
    phase: str = "beginning"

    def hear(self, events: Iterable[Event]) -> None:
        """Take in what was recorded since the last time."""
        for event in events:
            if isinstance(event, Phase):
                self.phase = event.name
            elif isinstance(event, Probe):
                self.recent.append(event)
                if event.ok:
                    self.answered_s[event.layer] = max(event.ended_s, self.answered_s.get(event.layer, 0.0))

    def told(self, now_s: float) -> str:
        """The phase, and layers that failed somebody within the last seconds: how many of whom, or since when all."""
        self.recent = [probe for probe in self.recent if probe.ended_s > now_s - RECENT_S]
        counts: Mapping[str, list[Probe]] = {probe.layer: [] for probe in self.recent}
        for probe in self.recent:
            counts[probe.layer].append(probe)
        failing = []
        for layer, probes in sorted(counts.items()):
            failed = sum(not probe.ok for probe in probes)
            if failed == len(probes):
                since_s = now_s - self.answered_s.get(layer, now_s)
                failing.append(f"{layer} away for {since_s:.0f} s")
            elif failed:
                failing.append(f"{layer} fails {failed} of {len(probes)}")
        return f"{self.phase}: {'; '.join(failing) or f'{len(counts)} layers answer'}"


@contextmanager
def shown(console: Console, folder: Path) -> Iterator[None]:
    """Keep the line up to date, in a terminal; elsewhere nothing is shown."""
    over, glance = threading.Event(), Glance()
    tails = [Tail(folder / FILE), Tail(folder / "probes.jsonl")]
    if not console.is_terminal:
        yield
        return
    with console.status(glance.phase) as status:

        def look() -> None:
            while not over.wait(UPDATE_S):
                for tail in tails:
                    glance.hear(tail.read())
                status.update(glance.told(time.monotonic()))

        thread = threading.Thread(target=look, name="glance", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
