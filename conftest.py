"""`pytest` certifies: opens the target of an environment, builds what is missing, and lets the features judge it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NoReturn

import pytest
from rich.console import Console

from provisioning.report import Terminal
from provisioning.session import REFUSALS, Session, open_session

pytest_plugins = [
    # What others import comes first: pytest rewrites the assertions of a module when it imports it itself.
    "certificate.plugin",
    "steps.machines",
    "steps.nodes",
    "steps.pods",
    "steps.cluster",
    "steps.namespaces",
    "steps.services",
    "steps.power",
    "steps.database",
    "steps.storage",
    "steps.site",
    "steps.edge",
    "steps.limits",
    "steps.growth",
    "steps.interference",
    "steps.drills",
    "steps.vip",
]
NO_TARGET = 2  # exit code: nothing was judged


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which target, and whether it may be changed."""
    group = parser.getgroup("haproof", "target")
    group.addoption("--env", default="lab", metavar="NAME|FILE", help="environment to certify (default: lab)")
    group.addoption("--plan", action="store_true", help="print what a build would change, change nothing, and end")
    group.addoption("--no-build", action="store_true", help="certify the target as it is found, without building")


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """With --plan, print the plan in place of a run."""
    if not config.option.plan:
        return None
    console = Console()
    try:
        session = open_session(config.option.env)
        with session.state.locked("planning"):
            outcome = session.build(Terminal(console, plan=True), plan=True)
    except REFUSALS as error:
        sys.stderr.write(f"{error}\n")
        return NO_TARGET
    console.print(f"{outcome.changed} would change", highlight=False)
    return 0


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What disrupts comes last, so that everything else judges the target as it was found."""
    items.sort(key=lambda item: [item.get_closest_marker(name) is not None for name in ("drill", "disruptive")])


@pytest.fixture(scope="session")
def target(pytestconfig: pytest.Config) -> Iterator[Session]:
    """The target of --env: reachable, held against other runs, and built unless --no-build.

    Opened when the first scenario needs it, so that tests of this code never touch a target. Its progress is
    shown although pytest captures output; without a target the whole run ends, in one message.
    """
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with ExitStack() as held:
        with capture.global_and_fixture_disabled():
            try:
                session = open_session(pytestconfig.option.env)
                held.enter_context(session.state.locked("certifying"))
                if not pytestconfig.option.no_build:
                    session.build(Terminal(Console(stderr=True)))
            except REFUSALS as error:
                end_without_target(str(error))
        yield session


@pytest.fixture(scope="session")
def say(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Shows a line of progress on long work, although pytest captures output."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    terminal = pytestconfig.pluginmanager.getplugin("terminalreporter")

    def said(line: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.write_line(line)

    return said


def end_without_target(cause: str) -> NoReturn:
    """End the run: there is nothing to judge."""
    sys.stderr.write(f"\n{cause}\n")
    pytest.exit("there is no target to judge", returncode=NO_TARGET)
