"""A workload that notes a write as acknowledged before it is tried: what then fails is lost without a word."""

import sys
from contextlib import suppress

import pytest

from chaos import workload
from chaos.history import Write
from tests.sabotage.false import swap

honest = workload.write_one


def hasty(writer: workload.AnyWriter, intended_s: float) -> Write:
    """Whatever becomes of it, it counts."""
    with suppress(Exception):
        return honest(writer, intended_s).model_copy(update={"error": ""})
    raise AssertionError("the honest one tells of every failure")


def pytest_configure(config: pytest.Config) -> None:
    """Drills start this workload in place of the honest one."""
    swap("chaos.workload", __name__)


if __name__ == "__main__":
    workload.write_one = hasty
    sys.exit(workload.main())
