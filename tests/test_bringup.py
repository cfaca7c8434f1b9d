"""The bring-up against the lab itself: what it refuses, and that it goes on after being cut off anywhere.

In order: the refusals need a hypervisor without machines, and the last test leaves the whole target built.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from proxmoxer import ProxmoxAPI

from environments.load import find, load
from lab import namespace, provider
from lab.lock import live_owner
from lab.paths import Paths

pytestmark = pytest.mark.lab
ROOT = Path(__file__).parent.parent
# Where a run is cut off; each in turn by Ctrl-C and by kill -9.
ACTIONS = (
    "template",
    "machines cloned",
    "machines shaped",
    "machines running",
    "nodes prepared",
    "first control plane",
    "pod network",
    "control planes joined",
    "workers joined",
    "MetalLB",
    "MetalLB pool",
    "cluster ready",
)


def build(env: Path | str = "lab", *options: str) -> subprocess.CompletedProcess[str]:
    """One whole run of the bring-up, as people start it."""
    command = [sys.executable, "-m", "provisioning", "--env", str(env), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)


def in_lab(work: Callable[[], object]) -> str:
    """Do `work` in a child process inside the lab's network, and return what it printed."""
    owner = live_owner(Paths.default())
    assert owner, "the lab is not up"
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        namespace.join(owner.pid)
        os.write(writing, str(work()).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return told


def api() -> ProxmoxAPI:
    """The lab's API, for use inside its network."""
    description = load(find("lab")).hypervisor
    return ProxmoxAPI(
        description.api_url.host,
        user="root@pam",
        token_name="haproof",
        token_value=description.token.reveal(),
        verify_ssl=description.ca,
        timeout=30,
    )


def machines() -> list[str]:
    """Names of all machines on the lab's hypervisor, templates left out."""
    told = in_lab(lambda: json.dumps([row["name"] for row in api().nodes("pve").qemu.get() if not row.get("template")]))
    return sorted(json.loads(told))


@pytest.fixture(scope="module", autouse=True)
def _lab() -> None:
    """The lab is up; these tests share it, in order. One that holds somebody's machines is left alone."""
    provider.up(Paths.default())
    if found := machines():
        pytest.fail(f"the lab holds {', '.join(found)}; these tests begin without: python -m lab down --delete")


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
    in_lab(lambda: [api().nodes("pve").qemu(n).status.stop.post() for n in (111, 112, 121, 122)])


def cut_off(action: str, number: signal.Signals) -> tuple[int, str]:
    """Start a run, send it a signal as soon as it is at `action`, and return its end and what it said."""
    command = [sys.executable, "-m", "provisioning", "--env", "lab"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr
        heard = []
        for line in process.stderr:
            heard.append(line)
            if line.strip() == f"… {action}":
                # Somewhere in the action, or after it: another moment each time, the same one in every run.
                with suppress(subprocess.TimeoutExpired):
                    process.wait(random.Random(f"{action} {number}").uniform(0, 4))
                # As a terminal does it: the whole group hears of Ctrl-C; a kill reaches the one process only.
                (os.killpg if number is signal.SIGINT else os.kill)(process.pid, number)
                break
        heard += list(process.stderr)
        return process.wait(), "".join(heard)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_run_cut_off_at_any_action_ends_at_once(action: str, number: signal.Signals) -> None:
    code, heard = cut_off(action, number)
    assert "building stopped at" not in heard, heard
    # Near the end of the list a run may come to its own end before it is cut off.
    assert code in (130 if number is signal.SIGINT else -signal.SIGKILL, 0), heard
    assert "Traceback" not in heard
    # The next parameter's run starts where this one ended; the last test shows where that leads.


def test_the_next_run_converges_and_the_one_after_changes_nothing() -> None:
    first = build()
    assert first.returncode == 0, first.stderr
    second = build()
    assert second.returncode == 0, second.stderr
    assert re.search(r"^0 changed$", second.stderr, re.MULTILINE), second.stderr


def test_a_node_that_dies_while_it_joins_is_named_and_the_next_run_goes_on() -> None:
    """The third worker's machine is made anew, and its power is cut when kubeadm is at work on it."""
    in_lab(_cut_power)
    kubectl = [sys.executable, "-m", "lab", "kubectl", "delete", "node", "srvk8s-worker03"]
    subprocess.run(kubectl, cwd=ROOT, check=True, timeout=60, capture_output=True)
    in_lab(_delete_worker)
    command = [sys.executable, "-m", "provisioning", "--env", "lab"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if line.strip() == "… workers joined":
                in_lab(_cut_power_at_work)
                break
        heard = "".join(process.stderr)
    assert process.returncode == 1, heard
    assert "stopped at “workers joined”" in heard
    assert "machine: srvk8s-worker03" in heard
    done = build()
    assert done.returncode == 0, done.stderr


def _cut_power() -> object:
    return api().nodes("pve").qemu(123).status.stop.post()


def _delete_worker() -> str:
    from provisioning.poll import poll  # noqa: PLC0415 - in the child process

    worker = api().nodes("pve").qemu(123)
    poll("worker off", lambda: worker.status.current.get()["status"] == "stopped", timeout_s=30)
    return str(worker.delete())


def _cut_power_at_work() -> str:
    """Wait until kubeadm has begun on the third worker, then cut its power."""
    from provisioning.kubeadm import MARKER  # noqa: PLC0415 - in the child process
    from provisioning.poll import poll  # noqa: PLC0415

    root = Paths.default().run / "roots" / "123"
    owner = live_owner(Paths.default())
    assert owner
    marker = Path(f"/proc/{owner.pid}/root{root}{MARKER}")
    poll("kubeadm at work", marker.exists, timeout_s=120, interval_s=0.05)
    return str(_cut_power())


def test_a_target_is_judged_without_anything_that_building_it_left_behind(tmp_path: Path) -> None:
    """As on another person's machine, or for a target that was built by hand."""
    command = [sys.executable, "-m", "pytest", "--no-build", "-q", "-m", "hypervisor or nodes and not disruptive"]
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ passed", done.stdout)
    assert "failed" not in done.stdout
