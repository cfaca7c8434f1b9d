"""A lie: one thing about a healthy target that is made untrue, and true again."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from certificate.verdict import Verdict
from environments.model import Machine
from tests.sabotage.stage import Stage

Tell = Callable[[Stage], AbstractContextManager[None]]
Pick = Callable[[Stage], Machine]


@dataclass(frozen=True)
class Lie:
    """What is told, and who owes it to notice.

    `breaks`: ids of promises, each of which must fall by a scenario of `layer`, or by those named in `scenarios` where
    others than the layer's acceptance scenarios could notice. `because`: a pattern that the reason given must show.
    `may`: promises that fall with them, for one thing rests on another. `rollback`: taking it back is the snapshot's.
    `plugin`: a module for pytest's -p, where the lie is about the suite itself and not about the target.
    """

    name: str
    layer: str
    breaks: tuple[str, ...]
    because: str
    tell: Tell
    scenarios: tuple[str, ...] = ()
    may: tuple[str, ...] = ()
    rollback: bool = False
    plugin: str = ""
    verdict: Verdict = Verdict.REFUTED


def on(pick: Pick, tell: str, undo: str) -> Tell:
    """Told by a script on a machine, and taken back by another one, both as root."""

    @contextmanager
    def told(stage: Stage) -> Iterator[None]:
        machine = pick(stage)
        try:
            stage.run(machine, tell)
            yield
        finally:
            stage.run(machine, undo)

    return told


def edited(path: str, expression: str) -> str:
    """A script: the file is another one by sed's `expression`, and kept as it was beside it; fails where it is not."""
    return (
        f"cp -p {path} {path}.sabotage; sed -i '{expression}' {path}; "
        f"if cmp -s {path} {path}.sabotage; then echo {path} says nothing to change >&2; exit 1; fi"
    )


@contextmanager
def nothing(_: Stage) -> Iterator[None]:
    """Nothing is told to the target."""
    yield


def together(*tells: Tell) -> Tell:
    """Several things told as one, taken back in reverse."""

    @contextmanager
    def told(stage: Stage) -> Iterator[None]:
        if not tells:
            yield
            return
        with tells[0](stage), together(*tells[1:])(stage):
            yield

    return told
