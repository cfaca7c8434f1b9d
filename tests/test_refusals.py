"""What the bring-up refuses, against the lab itself; needs a hypervisor without machines, and leaves it so."""

import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from environments.load import find
from lab import provider
from lab.lock import live_owner
from lab.paths import Paths
from tests.live_lab import ROOT, api, build, in_lab, machines

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module", autouse=True)
def _lab() -> Iterator[None]:
    """The lab is up, and empty again afterwards. One that holds somebody's machines is left alone."""
    provider.up(Paths.default())
    if found := machines():
        pytest.fail(f"the lab holds {', '.join(found)}; these tests begin without: python -m lab down --delete")
    yield
    subprocess.run([sys.executable, "-m", "lab", "down", "--delete"], cwd=ROOT, check=True, timeout=120)


@pytest.fixture
def variant(tmp_path: Path) -> Callable[..., Path]:
    """Writes the lab's environment with some text replaced."""

    def write(**changes: tuple[str, str]) -> Path:
        text = find("lab").read_text()
        for old, new in changes.values():
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "variant.toml"
        path.write_text(text)
        assert tomllib.loads(text)
        return path

    return write


def test_a_wrong_token_is_told_as_such(variant: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("00000000-0000-0000-0000-000000000000\n")
    done = build(variant(token=("file:/var/lib/haproof-lab/api-token", f"file:{tmp_path}/token")))
    assert done.returncode == 1
    assert "refuses the token root@pam!haproof (401); check hypervisor.token_id" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_authority_is_told_as_such(variant: Callable[..., Path]) -> None:
    done = build(variant(ca=("/var/lib/haproof-lab/pve-root-ca.pem", "/etc/ssl/certs/ca-certificates.crt")))
    assert done.returncode == 1
    assert "shows a certificate that /etc/ssl/certs/ca-certificates.crt does not vouch for" in done.stderr


def test_an_api_that_is_not_there_is_told_as_such(variant: Callable[..., Path]) -> None:
    done = build(variant(url=("https://172.31.0.1:8006", "https://172.31.0.1:8007")))
    assert done.returncode == 1
    assert "https://172.31.0.1:8007/ does not answer" in done.stderr


def test_a_missing_image_is_told_as_such(variant: Callable[..., Path]) -> None:
    done = build(variant(image=("debian-12-genericcloud-amd64.raw", "none.raw")))
    assert done.returncode == 1
    assert "stopped at “template”" in done.stderr
    assert "none.raw" in done.stderr


def test_an_image_with_another_checksum_is_refused(variant: Callable[..., Path]) -> None:
    done = build(variant(sums=("url:http://172.31.0.1/images/SHA512SUMS", f"sha512:{'0' * 128}")))
    assert done.returncode == 1
    assert "checksum" in done.stderr


@pytest.fixture
def stranger() -> Iterator[str]:
    """A machine of somebody else, with the id of ours."""
    in_lab(lambda: api().nodes("pve").qemu.post(vmid=123, name="payroll", memory=512, cores=1))
    yield "payroll"
    in_lab(lambda: api().nodes("pve").qemu(123).delete())


def test_a_machine_of_somebody_else_is_never_touched(stranger: str) -> None:
    done = build()
    assert done.returncode == 1
    assert "VM 123, meant for srvk8s-worker03, is “payroll”" in done.stderr
    assert "nothing was changed" in done.stderr
    assert machines() == [stranger]


def test_a_plan_changes_nothing() -> None:
    done = build("lab", "--plan")
    assert done.returncode == 0
    assert "clone srvk8s-master01 (VM 111)" in done.stderr
    assert machines() == []


@pytest.fixture
def taken_address() -> Iterator[str]:
    """An address of ours that somebody on the segment answers for."""
    owner = live_owner(Paths.default())
    assert owner
    command = ["nsenter", f"--net=/proc/{owner.pid}/ns/net", "--", "ip", "address"]
    subprocess.run([*command, "add", "172.31.0.23/32", "dev", "vmbr1"], check=True)
    yield "172.31.0.23"
    subprocess.run([*command, "delete", "172.31.0.23/32", "dev", "vmbr1"], check=True)


def test_an_address_in_use_stops_the_machine_that_wants_it(taken_address: str) -> None:
    done = build()
    assert done.returncode == 1
    assert "stopped at “machines running”" in done.stderr
    assert f"{taken_address} is answered although srvk8s-worker03 is off" in done.stderr
