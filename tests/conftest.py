"""What the tests of this code share."""

import os
from functools import cache

import pytest
from hypothesis import settings

from lab import provider
from lab.lock import live_owner
from lab.paths import Paths
from provisioning.session import Session, open_session
from tests.live_lab import whole

pytest_plugins = ["pytester"]
# A busy machine is no counterexample.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@cache
def lacking() -> str:
    """What keeps the lab from running on this machine, as the doctor says it; empty where it runs."""
    paths = Paths.default()
    if os.geteuid() == 0 and live_owner(paths):
        return ""
    return " ".join(provider.misses(paths))


@pytest.fixture(scope="session")
def lab_target() -> Session:
    """The lab's target, built once for all modules that test it; each leaves it as its own file says."""
    session = open_session("lab")
    whole(session)
    return session


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test of the lab itself is skipped where there can be none, and says what it lacks."""
    if item.get_closest_marker("lab") and (told := lacking()):
        pytest.skip(told)
