"""What a run of load showed, second by second: histograms that merge exactly, errors by kind, what was not delivered.

`record.jsonl` begins with a header, has a line a second, and ends with the totals by request; a run without that end is
incomplete. Latencies are microseconds from the intended start, in HdrHistogram's own compressed form.
"""

import errno
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

from hdrh.histogram import HdrHistogram
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

FILE = "record.jsonl"
LOWEST_US, HIGHEST_US, DIGITS = 1, 3_600_000_000, 3
LATE_S = 0.05  # a visitor that is sent so long after the intended start was held back by the generator
VOID_SHARE = 0.01
BY_HAND = "stopped by hand"
VISIT = "visit"  # what failures are counted by that are no request's: it broke off by itself, or nobody was sent
BEGUN = "visitors come"  # what the generator says at second 0
# What keeps a request from leaving this machine is the generator's own: no files, no ports, no room for packets.
OWN_FAULTS = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS})


class RecordError(Exception):
    """A record cannot be read; the message names file, line and what was expected."""


def said_of(error: BaseException) -> str:
    """What an error says, or which one it is."""
    return str(error).strip() or type(error).__name__


def histogram() -> HdrHistogram:
    """An empty one: from a microsecond to an hour, three digits."""
    return HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)


class Line(BaseModel):
    """A line of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Header(Line):
    """What was asked for; `began` is second 0 of all that follows, `segments` as (seconds, first rate, last rate)."""

    kind: Literal["header"] = "header"
    environment: str
    url: str
    command: str
    began: datetime
    segments: tuple[tuple[float, float, float], ...]
    workers: int
    weights: Mapping[str, float]
    objective: Mapping[str, float] = {}


class Second(Line):
    """Requests by the second of their intended start; `latencies` is a histogram.

    `visitors` were meant to come in it. Records from before these were counted have none: then any loss voids a run.
    """

    kind: Literal["second"] = "second"
    at_s: Annotated[int, Field(ge=0)]
    latencies: str
    failed: int
    undelivered: int
    late: int
    visitors: Annotated[int, Field(ge=0)] = 0


class Request(Line):
    """One sort of request, over the whole run; `errors` counts by kind."""

    kind: Literal["request"] = "request"
    name: str
    latencies: str
    errors: Mapping[str, int]


class Mark(Line):
    """Something that was done meanwhile, and until when."""

    kind: Literal["mark"] = "mark"
    what: str
    began_s: float
    ended_s: float


class Sample(Line):
    """A machine's processors in use, and what else was counted on it; a share of all of its processors."""

    kind: Literal["sample"] = "sample"
    at_s: float
    machine: str
    cpu: float
    busy: Mapping[str, float] = {}


class End(Line):
    """The run is whole, or why it is not; `lost` counts the visitors that were not delivered, by why."""

    kind: Literal["end"] = "end"
    incomplete: str = ""
    lost: Mapping[str, int] = {}


AnyLine = Annotated[Header | Second | Request | Mark | Sample | End, Field(discriminator="kind")]
LINE: TypeAdapter[AnyLine] = TypeAdapter(AnyLine)


class Tally:
    """What happened since it was last drained; merges exactly, whoever counted it."""

    def __init__(self) -> None:
        self._seconds: dict[int, HdrHistogram] = {}
        self._requests: dict[str, HdrHistogram] = {}
        self._errors: dict[str, Counter[str]] = defaultdict(Counter)
        self._counts: dict[str, Counter[int]] = defaultdict(Counter)
        self._lost: Counter[str] = Counter()

    def meant(self, intended_s: float) -> None:
        """A visitor is meant to come, whatever becomes of that."""
        self._counts["visitors"][int(intended_s)] += 1

    def answered(self, name: str, intended_s: float, ended_s: float, error: str = "") -> None:
        """A request came to its end: when it was meant to begin, and when it ended; seconds since the run began."""
        latency_us = min(HIGHEST_US, max(LOWEST_US, round((ended_s - intended_s) * 1e6)))
        second = int(intended_s)
        if second not in self._seconds:
            self._seconds[second] = histogram()
        if name not in self._requests:
            self._requests[name] = histogram()
        self._seconds[second].record_value(latency_us)
        self._requests[name].record_value(latency_us)
        if error:
            self._errors[name][error] += 1
            self._counts["failed"][second] += 1

    def undelivered(self, intended_s: float, why: str) -> None:
        """A visitor was not sent, or not to the end, for a reason of the generator's own."""
        self._counts["undelivered"][int(intended_s)] += 1
        self._lost[why] += 1

    def late(self, intended_s: float) -> None:
        """A visitor was sent too late."""
        self._counts["late"][int(intended_s)] += 1

    def drained(self) -> dict[str, Any]:
        """All of it, in a form that travels; counting begins anew."""
        told = {
            "seconds": {second: found.encode() for second, found in self._seconds.items()},
            "requests": {name: found.encode() for name, found in self._requests.items()},
            "errors": {name: dict(found) for name, found in self._errors.items()},
            "counts": {name: dict(found) for name, found in self._counts.items()},
            "lost": dict(self._lost),
        }
        self.__init__()  # type: ignore[misc]
        return told

    def add(self, told: Mapping[str, Any]) -> None:
        """What another one drained."""
        for into, came in ((self._seconds, told["seconds"]), (self._requests, told["requests"])):
            for key, coded in came.items():
                if key in into:
                    into[key].decode_and_add(coded)
                else:
                    into[key] = HdrHistogram.decode(coded)
        for name, errors in told["errors"].items():
            self._errors[name].update(errors)
        for name, counts in told["counts"].items():
            self._counts[name].update(counts)
        self._lost.update(told["lost"])

    @property
    def overall(self) -> HdrHistogram:
        """Every request."""
        merged = histogram()
        for found in self._requests.values():
            merged.add(found)
        return merged

    @property
    def failed(self) -> int:
        """How many requests failed."""
        return sum(self._counts["failed"].values())

    @property
    def lost(self) -> Mapping[str, int]:
        """Visitors that were not delivered, by why."""
        return dict(self._lost)

    def lines(self) -> Iterator[Second | Request]:
        """As it is kept."""
        seconds = {*self._seconds, *(second for counts in self._counts.values() for second in counts)}
        for second in sorted(seconds):
            yield Second(
                at_s=second,
                latencies=_text(self._seconds.get(second, histogram())),
                failed=self._counts["failed"][second],
                undelivered=self._counts["undelivered"][second],
                late=self._counts["late"][second],
                visitors=self._counts["visitors"][second],
            )
        for name in sorted(self._requests):
            yield Request(name=name, latencies=_text(self._requests[name]), errors=dict(self._errors[name]))


def own_fault(error: object) -> str:
    """What an error says of the machine that sends, by the name of its number; empty where it says nothing. Pure."""
    number = error.errno if isinstance(error, OSError) else None
    return errno.errorcode[number] if number is not None and number in OWN_FAULTS else ""


def _text(found: HdrHistogram) -> str:
    coded = found.encode()
    return coded.decode() if isinstance(coded, bytes) else str(coded)


def write(file: TextIO, line: AnyLine) -> None:
    """Append a line."""
    file.write(line.model_dump_json() + "\n")
    file.flush()


def begun(folder: Path) -> Header:
    """How the record in `folder` begins; raises RecordError."""
    first = read(folder, 1)[0]
    assert isinstance(first, Header)
    return first


def read(folder: Path, at_most: int | None = None) -> list[AnyLine]:
    """The lines of the record in `folder`, or `at_most` so many of them; raises RecordError."""
    file = folder / FILE
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{file} cannot be read: {error}") from error
    found: list[AnyLine] = []
    for number, line in enumerate(text.splitlines()[:at_most], start=1):
        try:
            found.append(LINE.validate_json(line))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise RecordError(f"{file}, line {number}: {first['msg']}") from error
    if not found or not isinstance(found[0], Header):
        raise RecordError(f"{file}: expected a header on its first line")
    return found
