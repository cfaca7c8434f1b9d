"""A probe that asks for a page once, and then reads what it was told before: no outage of a page is ever seen."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from chaos import probe
from tests.sabotage.false import swap


def once(ask: Callable[[Any], None]) -> Callable[[Any], None]:
    """Asks the first time that a layer is to be asked."""
    answered = set[str]()

    def asked(question: Any) -> None:
        if question.layer not in answered:
            ask(question)
            answered.add(question.layer)

    return asked


def pytest_configure(config: pytest.Config) -> None:
    """Drills start this prober in place of the honest one."""
    swap("chaos.probe", __name__)


if __name__ == "__main__":
    for kind in (probe.Page, probe.PublicPage):
        setattr(kind, "ask", once(kind.ask))  # noqa: B010 - mypy forbids what this does
    sys.exit(probe.main())
