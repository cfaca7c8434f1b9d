"""The built site where an environment chooses otherwise: the same bring-up changes it, and the features judge it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_lab import ROOT, build

pytestmark = pytest.mark.lab


@pytest.fixture
def built() -> Iterator[None]:
    """The lab's target as its own file says, before and after."""
    whole()
    yield
    whole()


def whole() -> None:
    """A build that ends well."""
    done = build()
    assert done.returncode == 0, done.stderr


def test_a_virtual_address_that_the_environment_closes_is_closed(built: None, tmp_path: Path) -> None:
    """To all but the connector and this runner."""
    text = (ROOT / "environments/lab.toml").read_text()
    closed = tmp_path / "closed.toml"
    clients = 'vip_clients = ["172.31.0.250/32", "172.31.0.1/32"]'
    closed.write_text(text.replace('vip = "172.31.0.100"', f'vip = "172.31.0.100"\n{clients}'))
    done = build(closed)
    assert done.returncode == 0, done.stderr
    assert "site declared: 1 changed" in done.stderr
    judged = subprocess.run(
        [sys.executable, "-m", "pytest", "features", f"--env={closed}", "--no-build", "-q", "-k", "virtual_address_it"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "1 passed" in judged.stdout, judged.stdout
