"""What a run found, as it is kept: `certificate.json`, from which everything else can be made again."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from certificate.promises import Promise
from certificate.verdict import Finding, Outcome, Verdict, of_promise, of_run

FILE = "certificate.json"
NAME_MAX = 80


class Unreadable(Exception):
    """A folder holds no certificate that can be read; the message says what is wrong with it."""


class Part(BaseModel):
    """What may not change once it is written, and holds nothing that is not named."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ScenarioRecord(Part):
    """One scenario as it ran: its text, its finding, and the files that show it, relative to the folder.

    `command` runs it again; certificates from before it was kept have none.
    """

    feature: str
    name: str
    text: str
    promises: tuple[str, ...]
    verdict: Verdict
    reason: str
    duration_s: Annotated[float, Field(ge=0)]
    evidence: tuple[str, ...] = ()
    command: str = ""

    @property
    def finding(self) -> Finding:
        """What it showed."""
        return Finding(self.verdict, self.reason)


class Change(Part):
    """A figure that is worse than in earlier runs of the same description, and the interval of the difference."""

    name: str
    value: float
    usual: float
    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = f"{self.difference:+.1f} ({self.low:+.1f} to {self.high:+.1f})"
        return f"slower than before: {self.name}: {self.value:.1f}, usually {self.usual:.1f}; {interval}"


class PromiseRecord(Part):
    """A promise, and what its scenarios make of it."""

    promise: Promise
    verdict: Verdict
    reason: str


class Software(Part):
    """What judged: the commit, and whether files differed from it."""

    commit: str
    changed: bool
    python: str


class Record(Part):
    """A whole run. `versions` are the target's components; `sha256` of the environment's file.

    `figures` are what is held against the `compared_with` earlier runs of the same file; so many of them as
    `figures_compared` are in enough of those, and `slower` is what that showed.
    """

    environment: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    began: datetime
    ended: datetime
    command: str
    software: Software
    versions: Mapping[str, str]
    emulated: tuple[str, ...]
    outcome: Outcome
    reasons: tuple[str, ...]
    promises: tuple[PromiseRecord, ...]
    scenarios: tuple[ScenarioRecord, ...]
    interrupted: str = ""
    figures: Mapping[str, float] = {}
    compared_with: int = 0
    figures_compared: int = 0
    slower: tuple[Change, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """What `folder` holds; raises Unreadable."""
        try:
            return cls.model_validate_json((folder / FILE).read_bytes())
        except OSError as error:
            raise Unreadable(f"{folder} holds no certificate: {error.strerror or error}") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise Unreadable(f"{folder / FILE}: {where}: {first['msg']}") from error

    def of(self, promise: str) -> dict[str, ScenarioRecord]:
        """The scenarios that are evidence for a promise, by name, in the order of the features."""
        return {one.name: one for one in self.scenarios if promise in one.promises}

    def judged_again(self) -> "Record":
        """The same run, its verdicts drawn anew from what its scenarios found. Pure."""
        rows = {
            row.promise: {name: one.finding for name, one in self.of(row.promise.id).items()} for row in self.promises
        }
        judged = {promise: (of_promise(promise, found), found) for promise, found in rows.items()}
        outcome, reasons = of_run(judged, self.interrupted)
        promises = tuple(
            PromiseRecord(promise=promise, verdict=finding.verdict, reason=finding.reason)
            for promise, (finding, _) in judged.items()
        )
        return self.model_copy(update={"outcome": outcome, "reasons": reasons, "promises": promises})
