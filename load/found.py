"""What a search for the capacity found, as it is kept: `capacity.json`, from which its page, JSON and CSV are made."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from load import capacity, usl
from load.busy import Busy
from load.record import Header, RecordError

FILE = "capacity.json"


class Part(BaseModel):
    """What may not change once it is written, and holds nothing that is not named."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Trial(Part):
    """A run at one rate of arrivals a second: what came of it, what it missed, and where its record lies.

    `requests_rate` is of those answered as wanted. Where `under_way` is missing, the file is from before these were
    counted, and its rate is of all requests.
    """

    rate: float
    requests_rate: float
    mean_ms: float
    p95_ms: float
    misses: str
    folder: str
    under_way: float | None = None

    @property
    def at_once(self) -> float:
        """Requests under way, on average."""
        return usl.at_once(self.requests_rate, self.mean_ms) if self.under_way is None else self.under_way


class Searched(Part):
    """A search under one condition (“all is well”, “a worker is down”), whole or until it was ended.

    `machines` is how busy each one was at the lowest rate that did not hold, or at the highest where all did.
    """

    condition: str
    trials: tuple[Trial, ...]
    machines: tuple[Busy, ...] = ()
    whole: bool = True

    @property
    def capacity(self) -> capacity.Capacity:
        """What the trials say of it."""
        return capacity.Capacity(tuple(capacity.Trial(trial.rate, trial.misses) for trial in self.trials))


class Found(Part):
    """All of it; `incomplete` is why it is not whole."""

    header: Header
    searched: tuple[Searched, ...]
    incomplete: str = ""

    @classmethod
    def read(cls, folder: Path) -> "Found":
        """What `folder` holds; raises RecordError."""
        try:
            return cls.model_validate_json((folder / FILE).read_bytes())
        except OSError as error:
            raise RecordError(f"{folder} holds no search for a capacity: {error.strerror or error}") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise RecordError(f"{folder / FILE}: {where}: {first['msg']}") from error

    def keep(self, folder: Path) -> None:
        """Write it; raises OSError."""
        (folder / FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
