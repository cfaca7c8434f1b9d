"""The promises that are judged, and the scenarios that are evidence for them."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, model_validator
from pytest_bdd.feature import get_features
from pytest_bdd.parser import ScenarioTemplate


class Promise(BaseModel):
    """One promise; `built` says whether its scenarios suffice to judge it, `reason` why they do not.

    `limit` is what the topology cannot keep of it: then the scenarios show the limit, and refute the promise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    text: str
    layer: str
    built: bool
    reason: str = ""
    limit: str = ""

    @model_validator(mode="after")
    def _has_its_reason(self) -> "Promise":
        if self.built == bool(self.reason):
            raise ValueError(f"{self.id}: expected a reason where built is false, and only there")
        return self


@dataclass(frozen=True)
class Scenario:
    """A scenario, known by its feature's file and its own name."""

    file: str
    name: str

    @classmethod
    def of(cls, template: ScenarioTemplate) -> "Scenario":
        """The scenario that pytest-bdd read."""
        return cls(str(Path(template.feature.filename).resolve()), template.name)


def read(path: Path) -> tuple[Promise, ...]:
    """The promises in `path`, in its order; raises OSError or ValueError."""
    return tuple(Promise.model_validate(row) for row in tomllib.loads(path.read_text())["promise"])


def tags_of(template: ScenarioTemplate) -> frozenset[str]:
    """The tags of a scenario, those of its rule and feature included."""
    return frozenset(template.tags | template.feature.tags | (template.rule.tags if template.rule else set()))


def templates(folder: Path) -> tuple[ScenarioTemplate, ...]:
    """Every scenario below `folder`, by file and in the file's order."""
    features = sorted(get_features([str(folder)]), key=lambda feature: feature.filename)
    return tuple(template for feature in features for template in feature.scenarios.values())


def evidence(promises: Iterable[Promise], known: Iterable[ScenarioTemplate]) -> dict[str, tuple[Scenario, ...]]:
    """For each promise's id, the scenarios tagged with it."""
    tagged = [(Scenario.of(template), tags_of(template)) for template in known]
    return {promise.id: tuple(item for item, tags in tagged if promise.id in tags) for promise in promises}
