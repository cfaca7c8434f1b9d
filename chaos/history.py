"""The history of a drill: everything that was intended, tried, done and seen, written first and judged afterwards.

One line of JSON an event; each process that writes has a file of its own in the drill's folder. Times are seconds of
the machine's monotonic clock, which its processes share and nobody steps; the header says when that was.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Annotated, Literal, TextIO, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

SILENCE = "no answer: "  # what stands before the reason where a part of the target tells no state
FILE = "history.jsonl"  # the drill's own; the others' are beside it
Kind = TypeVar("Kind")


class HistoryError(Exception):
    """A history cannot be written or read: which file, which line, and why."""


class Event(BaseModel):
    """What all lines have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Header(Event):
    """The first line: what is repeated with the same seed."""

    kind: Literal["header"] = "header"
    drill: str
    environment: str
    seed: int
    command: str
    began: datetime = Field(default_factory=lambda: datetime.now(UTC))
    at_s: float
    loss_window_s: Annotated[float, Field(ge=0, description="acknowledged so shortly before, it may be lost")] = 0.0
    intervals_s: Annotated[Mapping[str, float], Field(description="between two questions or writes, by layer")]


class Probe(Event):
    """One question to one layer. Latency counts from `intended_s`: a stalled asker hides nothing."""

    kind: Literal["probe"] = "probe"
    layer: str
    intended_s: float
    started_s: float
    ended_s: float
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether it was answered."""
        return not self.error


class Write(Event):
    """One write of the workload: what was written under which name, and whether it was acknowledged."""

    kind: Literal["write"] = "write"
    sort: Annotated[str, Field(description="post, row, upload")]
    name: str
    digest: str
    intended_s: float
    started_s: float
    ended_s: float
    error: str = ""

    @property
    def as_probe(self) -> Probe:
        """The write as a question to the layer of writing: a writer that waits for one write is not late itself."""
        return Probe(
            layer=f"write/{self.sort}",
            intended_s=self.intended_s,
            started_s=self.intended_s,
            ended_s=self.ended_s,
            error=self.error,
        )

    @property
    def acknowledged(self) -> bool:
        """Whether its writer was told that it is done."""
        return not self.error


class Found(Event):
    """What was there at the end under a name, as often as it was there."""

    kind: Literal["found"] = "found"
    sort: str
    name: str
    digest: str


class Fault(Event):
    """A step of a fault's life."""

    kind: Literal["fault"] = "fault"
    step: Literal["inject", "injected", "heal", "healed"]
    name: str
    targets: tuple[str, ...]
    at_s: float
    takes_data: Annotated[bool, Field(description="whoever holds the data is gone by it, all at once")] = False


class Seen(Event):
    """An observation: a subject and its state, whenever that changes."""

    kind: Literal["seen"] = "seen"
    subject: str
    state: str
    at_s: float


class Phase(Event):
    """A drill's phase begins."""

    kind: Literal["phase"] = "phase"
    name: Literal["steady", "fault", "redundancy", "afterwards", "verification", "end"]
    at_s: float
    clock_offset_s: Annotated[float | None, Field(description="the wall clock less the monotonic one")] = None


class Allowed(Event):
    """The budget as it was computed from the target's timers when the drill began."""

    kind: Literal["allowed"] = "allowed"
    layer: str
    seconds: Annotated[float, Field(ge=0)]
    formula: str
    total_s: Annotated[float | None, Field(ge=0, description="of answering nobody at all; None: as `seconds`")] = None
    held_s: Annotated[float, Field(ge=0, description="what of `seconds` is over when the fault is taken back")] = 0.0
    back_s: Annotated[float, Field(ge=0, description="once more when the fault is taken back")] = 0.0


class Aborted(Event):
    """The drill ended early: why. What was seen until then stands, and is not enough for a verdict."""

    kind: Literal["aborted"] = "aborted"
    reason: str
    at_s: float


Line = Annotated[Header | Probe | Write | Found | Fault | Seen | Phase | Allowed | Aborted, Field(discriminator="kind")]
LINE: TypeAdapter[Line] = TypeAdapter(Line)


class Recorder:
    """Appends events to a history. What must not be lost is on the disk before `record` returns."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lock = Lock()

    @classmethod
    def into(cls, file: Path) -> "Recorder":
        """A new file; raises HistoryError when there is one already."""
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            return cls(file.open("x", encoding="utf-8"))
        except OSError as error:
            raise HistoryError(f"{file}: {error.strerror}; choose another folder") from error

    def record(self, event: Event, *, durable: bool = False) -> None:
        """Append an event, with `durable` onto the disk; raises HistoryError, as on a full disk."""
        try:
            with self._lock:
                self._file.write(f"{event.model_dump_json()}\n")
                self._file.flush()
                if durable:
                    os.fsync(self._file.fileno())
        except OSError as error:
            raise HistoryError(f"{self._file.name}: {error.strerror}; what was written before is kept") from error

    def close(self) -> None:
        """End it, on the disk."""
        with self._lock, suppress(OSError):  # what a full disk did not take was told when it was written
            os.fsync(self._file.fileno())
            self._file.close()


class History:
    """A whole history, read back; events by kind in the order of writing."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.events = tuple(events)
        headers = self.of(Header)
        if len(headers) != 1:
            raise HistoryError(f"expected one header, found {len(headers)}")
        self.header = headers[0]

    @classmethod
    def read(cls, folder: Path) -> "History":
        """The history in a folder, of all who wrote to it.

        A last line that was cut off is left out: its writer died over it. Raises HistoryError naming file and line.
        """
        own = folder / FILE
        events: list[Event] = []
        for file in (own, *sorted(other for other in folder.glob("*.jsonl") if other != own)):
            try:
                events += parse(_text(file.read_bytes()))
            except OSError as error:
                raise HistoryError(f"{file}: {error.strerror}") from error
            except HistoryError as error:
                raise HistoryError(f"{file}: {error}") from error
        try:
            return cls(events)
        except HistoryError as error:
            raise HistoryError(f"{own}: {error}") from error

    def of(self, kind: type[Kind]) -> tuple[Kind, ...]:
        """The events of one kind."""
        return tuple(event for event in self.events if isinstance(event, kind))

    def phase(self, name: str) -> tuple[float, float] | None:
        """From when to when a phase went, the last time that it began; None when it never did."""
        phases = self.of(Phase)
        ends_s = [*(phase.at_s for phase in phases[1:]), self.ended_s]
        spans = [(phase.at_s, end_s) for phase, end_s in zip(phases, ends_s, strict=False) if phase.name == name]
        return spans[-1] if spans else None

    @cached_property
    def ended_s(self) -> float:
        """The last moment that anything is told of; a judge asks for it over and over, of ten thousands of events."""
        return max(max(self._times(event)) for event in self.events)

    def _times(self, event: Event) -> Iterator[float]:
        yield self.header.at_s
        for name in ("at_s", "ended_s"):
            if isinstance(value := getattr(event, name, None), float):
                yield value


def _text(held: bytes) -> str:
    """A file's text; a last line may end within a letter. Raises HistoryError."""
    whole, newline, cut_off = held.rpartition(b"\n")
    try:
        return (whole + newline).decode() + cut_off.decode(errors="ignore")
    except UnicodeDecodeError as error:
        raise HistoryError(f"is no text: {error}") from error


def parse(text: str) -> Iterator[Event]:
    """The events of a history's text; raises HistoryError with the number of the line that is none."""
    whole, _, cut_off = text.rpartition("\n")
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            yield LINE.validate_json(line)
        except ValidationError as error:
            raise HistoryError(f"line {number} is no event: {error.errors()[0]['msg']}") from error
    if cut_off:
        try:
            yield LINE.validate_json(cut_off)
        except ValidationError:
            return
