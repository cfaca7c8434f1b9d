"""Bring-up as a list of small actions: each says what it would change, and changes it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class ActionFailed(Exception):
    """An action could not do its work: which machine, which command, and the last output."""

    def __init__(self, cause: str, *, machine: str = "", command: str = "", output: str = "") -> None:
        self.cause = cause
        self.machine = machine
        self.command = command
        self.output = output
        super().__init__(cause)

    def __str__(self) -> str:
        lines = [self.cause]
        if self.machine:
            lines.append(f"machine: {self.machine}")
        if self.command:
            lines.append(f"command: {self.command}")
        if self.output.strip():
            lines.append("its last output:\n" + "\n".join(self.output.strip().splitlines()[-20:]))
        return "\n  ".join(lines)


class BuildFailed(Exception):
    """A bring-up ended at an action; the machines are kept and the next run goes on from there."""

    def __init__(self, action: str, cause: ActionFailed) -> None:
        self.action = action
        self.cause = cause
        super().__init__(
            f"building stopped at “{action}”: {cause}\n"
            "The machines are kept as they are; correct the cause and run the same command again to go on from here."
        )


class Action(Protocol):
    """One step of a bring-up."""

    @property
    def name(self) -> str:
        """What the action brings about, in a few words."""

    def pending(self) -> Sequence[str]:
        """What is not so yet, a line each; empty when there is nothing to do. Reads, never changes."""

    def apply(self) -> None:
        """Bring it about; raises ActionFailed. Called only when something is pending."""


class Reporter(Protocol):
    """Hears of a bring-up's progress."""

    def begin(self, action: str) -> None:
        """`action` is being looked at."""

    def end(self, action: str, changes: Sequence[str], elapsed_s: float) -> None:
        """`action` is as it should be; `changes` were made (or, in a plan, would be)."""


@dataclass
class Outcome:
    """What a bring-up changed, or in a plan would change, by action."""

    changes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def changed(self) -> int:
        """How many things changed."""
        return sum(len(lines) for lines in self.changes.values())


def bring_up(actions: Sequence[Action], reporter: Reporter, *, plan: bool = False) -> Outcome:
    """Run `actions` in order, each only where it is not so already; with `plan`, change nothing.

    Raises BuildFailed, naming the action, when one fails.
    """
    outcome = Outcome()
    for action in actions:
        started = time.monotonic()
        reporter.begin(action.name)
        try:
            pending = tuple(action.pending())
            if pending and not plan:
                action.apply()
        except ActionFailed as failure:
            raise BuildFailed(action.name, failure) from failure
        outcome.changes[action.name] = pending
        reporter.end(action.name, pending, time.monotonic() - started)
    return outcome
