"""On a machine that lacks something: what can run runs, and the rest is a sentence each, with what to do."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lab.doctor import misses
from lab.supervisor import ensure_ssh_key
from tests.test_lab_doctor import GOOD

ROOT = Path(__file__).parent.parent
NOBODY = 65534
# Runs what follows with a folder that is full as soon as it holds 64 KiB; mounted for that process alone.
FULL = 'mount -t tmpfs -o size=64k none "$0" && exec "$@"'


def sentence(told: str) -> bool:
    return told.endswith(".") and "\n" not in told and (":" in told or "`" in told)


@pytest.mark.parametrize(
    ("lack", "word"),
    [
        ({"is_root": False}, "sudo"),
        ({"go": None}, "Go 1.22"),
        ({"devices": GOOD.devices - {"/dev/fuse"}}, "/dev/fuse"),
        ({"state_free_mib": 10}, "make room"),
    ],
)
def test_what_is_lacking_is_one_sentence(lack: dict[str, object], word: str) -> None:
    (told,) = misses(replace(GOOD, **lack))  # type: ignore[arg-type]
    assert sentence(told)
    assert word in told


def test_nothing_is_said_of_what_only_root_can_see() -> None:
    assert len(misses(replace(GOOD, is_root=False, link_kinds=frozenset()))) == 1


# Without root


@pytest.fixture
def as_nobody(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs a command of this checkout as a user who may read everything and change nothing."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("Becoming nobody takes root and setpriv: run this with sudo, and install util-linux.")
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    caps = [f"--{kind}=-all,+dac_read_search" for kind in ("inh-caps", "bounding-set")]
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *caps]
    variables = {name: str(home / name.lower()) for name in ("HAPROOF_LAB_STATE", "HAPROOF_LAB_RUN", "XDG_STATE_HOME")}

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*become, "--ambient-caps=+dac_read_search", sys.executable, "-m", *words],
            cwd=ROOT,
            env={**os.environ, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", **variables},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def test_without_root_tests_of_this_code_run_and_those_of_the_lab_say_what_they_lack(
    as_nobody: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    tests = ["tests/test_lab_doctor.py", "tests/test_refusals.py::test_a_plan_changes_nothing"]
    done = as_nobody("pytest", *tests, "-p", "no:cacheprovider", "-rs", f"--basetemp={tmp_path}/home/t")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout
    assert "so it needs root: run this with sudo." in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_without_root_features_are_not_judged_in_one_message(
    as_nobody: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    words = ["features", "-p", "no:cacheprovider", "-k", "every_control", f"--basetemp={tmp_path}/home/t"]
    done = as_nobody("pytest", *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "this machine cannot run the lab:\n- The lab makes network namespaces and mounts, so it" in done.stderr
    assert "there is no target to judge" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


# With a full disk


@pytest.fixture
def on_a_full_disk(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs Python code, whose `folder` is on a file system without room."""
    place = tmp_path / "full"
    place.mkdir()
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("A full disk of its own takes a mount namespace: run this with sudo.")

    def run(code: str) -> "subprocess.CompletedProcess[str]":
        begin = f"from pathlib import Path\nfolder = Path({str(place)!r})\n(folder / 'big').touch()\n"
        command = ["unshare", "--mount", "bash", "-c", FULL, str(place), sys.executable, "-c", begin + code]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    return run


def test_a_history_on_a_full_disk_is_one_sentence(
    on_a_full_disk: Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    done = on_a_full_disk(
        "from chaos.history import HistoryError, Phase, Recorder\n"
        "recorder = Recorder.into(folder / 'history.jsonl')\n"
        "try:\n"
        "    for at in range(10000): recorder.record(Phase(name='steady', at_s=at), durable=True)\n"
        "except HistoryError as error: print(error)\n"
    )
    assert done.stdout.endswith("No space left on device; what was written before is kept\n"), done.stderr
    assert done.stdout.count("\n") == 1


def test_a_certificate_on_a_full_disk_is_none_and_says_so(
    on_a_full_disk: Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    done = on_a_full_disk(
        "(folder / 'filler').write_bytes(bytes(50000))\n"
        "from certificate.evidence import write\n"
        "from tests.test_certificate import record\n"
        "found = record()\n"
        "one = found.scenarios[0].model_copy(update={'evidence': (), 'text': 'x' * 50000})\n"
        "found = found.model_copy(update={'scenarios': (one,)})\n"
        "try: write(folder, found)\n"
        "except OSError as error: print(error.strerror)\n"
        "print((folder / 'certificate.json').exists())\n"
    )
    assert done.stdout == "No space left on device\nFalse\n", done.stdout + done.stderr


def test_a_build_cache_on_a_full_disk_is_one_sentence(
    on_a_full_disk: Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    done = on_a_full_disk(
        "import os\n"
        "os.environ |= {'HAPROOF_LAB_STATE': str(folder), 'XDG_CACHE_HOME': str(folder)}\n"
        "from lab import doctor\n"
        "from lab.paths import Paths\n"
        "for told in doctor.misses(doctor.examine(Paths.default(), False)):\n"
        "    if 'make room' in told: print(told)\n"
    )
    (told,) = done.stdout.splitlines()
    assert told.startswith("0 MiB are free for ")
    assert sentence(told)


# Without a network


def test_without_a_network_a_hypervisor_is_one_sentence(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        pytest.skip("A machine without network takes a network namespace: run this with sudo.")
    text = (ROOT / "environments/lab.toml").read_text().replace('provider = "lab"\n', "")
    lines = [line for line in text.splitlines() if not line.startswith(("provider_options", "ca = "))]
    file = tmp_path / "alone.toml"
    file.write_text("\n".join(lines).replace("file:/var/lib/haproof-lab/", f"file:{tmp_path}/secret#"))
    ensure_ssh_key(tmp_path / "secret#id_ed25519")
    for name in ("api-token", "wordpress-db-password", "wordpress-admin-password", "cloudflare-token", "mailbox-token"):
        (tmp_path / f"secret#{name}").write_text("not-a-real-secret")
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-m", "provisioning", "--env", str(file), "--plan"],
        cwd=ROOT,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "does not answer" in done.stderr
    assert "check hypervisor.api_url, and that it is up" in done.stderr
    assert "Traceback" not in done.stderr
