"""The built site where an environment chooses otherwise: the same bring-up changes it, and the features judge it."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from provisioning.session import Session
from steps.limits import keep_visiting
from tests.live_lab import ROOT, build, whole

pytestmark = pytest.mark.lab


@pytest.fixture
def target(lab_target: Session) -> Iterator[Session]:
    """The lab's, and as its own file says again afterwards."""
    yield lab_target
    whole(lab_target)


def variant(folder: Path, changes: Mapping[str, str]) -> Path:
    """The lab's environment with some things chosen otherwise."""
    text = (ROOT / "environments/lab.toml").read_text()
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    file = folder / "variant.toml"
    file.write_text(text)
    return file


def test_what_an_environment_chooses_otherwise_is_rolled_out_while_the_site_answers(
    target: Session, tmp_path: Path
) -> None:
    """A visitor whose page was being made from a data node that went reloads it.

    The virtual address is closed to all but the connector and this runner, who is that visitor.
    """
    clients = 'vip_clients = ["172.31.0.250/32", "172.31.0.1/32"]'
    other = variant(
        tmp_path,
        {
            "heartbeat_interval_ms = 1500": "heartbeat_interval_ms = 1600",
            'vip = "172.31.0.100"': f'vip = "172.31.0.100"\n{clients}',
        },
    )
    with ThreadPoolExecutor(1) as pool:
        rollout = pool.submit(build, other)
        visits = keep_visiting(target.environment, lambda: not rollout.done())
    assert rollout.result().returncode == 0, rollout.result().stderr
    assert "NDB cluster started: 3 changed" in rollout.result().stderr
    assert "site declared: 1 changed" in rollout.result().stderr
    assert visits.made
    assert not visits.lost, f"{visits}: {visits.lost[0]}"
    judged = subprocess.run(
        [sys.executable, "-m", "pytest", "features", f"--env={other}", "--no-build", "-q", "-k", "virtual_address_it"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "1 passed" in judged.stdout, judged.stdout
