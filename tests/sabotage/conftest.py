"""The stage that lies are told on, and the matrix that they make."""

from collections.abc import Callable

import pytest
from rich.console import Console

from provisioning.report import Terminal
from tests.sabotage.features import every_scenario
from tests.sabotage.lie import Lie
from tests.sabotage.matrix import Row, line, lines
from tests.sabotage.stage import UNPREPARED, Stage, prepared

NO_STAGE = 2  # exit code: nothing was told
MATRIX = pytest.StashKey[list[Row]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many."""
    parser.getgroup("haproof", "target").addoption(
        "--lies",
        type=int,
        metavar="N",
        help="N of the lies that are noticed while nothing is disrupted, by --seed (default: all)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """An empty matrix."""
    config.stash[MATRIX] = []


@pytest.fixture(scope="session")
def note(pytestconfig: pytest.Config, say: Callable[[str], None]) -> Callable[[Row], None]:
    """Takes down what came of a lie, and says it at once: the whole matrix is long in coming."""

    def noted(row: Row) -> None:
        pytestconfig.stash[MATRIX].append(row)
        say(line(row))
        if row.complaint:
            say(f"  {row.complaint}")

    return noted


@pytest.fixture(scope="session")
def stage(pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> Stage:
    """A built target that is whole, and kept so where a lie is told that takes a rollback."""
    told = [item.callspec.params.get("lie") for item in request.session.items if hasattr(item, "callspec")]
    keep = any(isinstance(lie, Lie) and lie.rollback for lie in told)
    option, capture = pytestconfig.option, pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        try:
            return prepared(option.env, option.chaos, Terminal(Console(stderr=True)), keep=keep)
        except UNPREPARED as error:
            pytest.exit(f"no lie is told: {error}", returncode=NO_STAGE)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The matrix."""
    if rows := config.stash[MATRIX]:
        terminalreporter.section("sabotage")
        for text in lines(rows, every_scenario()):
            terminalreporter.write_line(text)
