"""A build: actions in their order, each only where it is not so already; what a target does to one is told as its."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from subprocess import SubprocessError
from typing import Protocol

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError
from yaml import YAMLError

from environments.secret import SecretMissing
from provisioning.action import Action, ActionFailed, BuildFailed, carried
from provisioning.hypervisor import HypervisorError
from provisioning.poll import DeadlineExceeded

# What a target does to an action that did not reckon with it; anything else is a mistake of ours, and shows as one.
MISHAPS = (
    ApiException,
    DeadlineExceeded,
    HTTPError,
    HypervisorError,
    OSError,
    SecretMissing,
    SubprocessError,
    ValueError,
    YAMLError,
)


class Reporter(Protocol):
    """Hears of a bring-up's progress."""

    def begin(self, action: str) -> None:
        """`action` is being looked at."""

    def end(self, action: str, changes: Sequence[str], elapsed_s: float) -> None:
        """`action` is as it should be; `changes` were made (or, in a plan, would be)."""


def as_failure(error: Exception) -> ActionFailed:
    """One of MISHAPS, told as an action's failure: kind and words, without headers and tracebacks. Pure."""
    if isinstance(error, ApiException):
        return ActionFailed(f"the Kubernetes API answers {error.status} {error.reason}", output=carried(error))
    return ActionFailed(f"{type(error).__name__}: {error}")


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

    Raises BuildFailed, naming the action and the cause, when one fails.
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
        except MISHAPS as error:
            raise BuildFailed(action.name, as_failure(error)) from error
        outcome.changes[action.name] = pending
        reporter.end(action.name, pending, time.monotonic() - started)
    return outcome
