"""A step of a bring-up: it says what it would change, and changes it; and what it says when it cannot."""

from collections.abc import Sequence
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


def carried(error: BaseException) -> str:
    """The answer that an error carries as its `body`, as text (kubernetes' ApiException); empty for others. Pure."""
    body = getattr(error, "body", None) or ""
    return body.decode(errors="replace") if isinstance(body, bytes) else str(body)


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
