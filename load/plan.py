"""What a run of load is: where to, when, by whom. Holds secrets, and so travels between processes only."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, PlainSerializer, model_validator

from environments.model import Visit
from load.arrivals import Segment

Url = Annotated[HttpUrl, PlainSerializer(str)]


class Editor(BaseModel):
    """An account of the site, and what Access wants to see with each request of a program's."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    user: str
    password: str
    headers: Mapping[str, str] = {}


class Plan(BaseModel):
    """A run. `resolve` maps names to addresses, as curl's --resolve; `ca` is the text of certificates to trust.

    `in_flight_max` is by worker: a visitor that comes while so many are under way is not delivered.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    url: Url
    segments: Annotated[tuple[Segment, ...], Field(min_length=1)]
    poisson_seed: int | None = None
    weights: Annotated[Mapping[Visit, Annotated[float, Field(ge=0)]], Field(min_length=1)]
    think_s: Annotated[float, Field(ge=0)] = 0.0
    workers: Annotated[int, Field(ge=1)] = 1
    in_flight_max: Annotated[int, Field(ge=1)] = 1000
    timeout_s: Annotated[float, Field(gt=0)] = 10.0
    keep_connections: bool = False
    resolve: Mapping[str, str] = {}
    ca: str = ""
    editor: Editor | None = None
    mark: str = "haproof-load-"

    @model_validator(mode="after")
    def _can_be_done(self) -> "Plan":
        wanted = {visit for visit, weight in self.weights.items() if weight}
        if not wanted:
            raise ValueError("expected a weight above 0 for one sort of visit at least")
        if self.editor is None and wanted & {Visit.EDIT, Visit.PUBLISH, Visit.UPLOAD}:
            raise ValueError("edit, publish and upload need an editor's account")
        return self
