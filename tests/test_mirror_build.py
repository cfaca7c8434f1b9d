"""How the mirror's content is made: by which source, in what order, and what is left when it fails."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab.cache import BuildError, Cache, Progress, Recipe
from lab.mirror import binaries, debs
from lab.mirror.command import retried, run
from lab.mirror.content import build_all, is_built
from lab.mirror.signing import SigningKey
from lab.paths import Paths
from provisioning.poll import poll


@dataclass
class Making:
    """A recipe that notes that it was made."""

    name: str
    made: list[str]
    needs: Sequence[Recipe] = ()
    during: Callable[[], object] = lambda: None
    heard: list[str] = field(default_factory=list)

    def inputs(self) -> bytes:
        return self.name.encode()

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        self.during()
        self.heard = sorted(made)
        self.made.append(self.name)


def silent(_: str) -> None:
    """Hear nothing."""


def test_independent_parts_are_made_side_by_side_and_the_last_sees_all(tmp_path: Path) -> None:
    made: list[str] = []
    both = threading.Barrier(2, timeout=10)
    fetched = Making("fetched", made, during=both.wait)
    compiled = Making("compiled", made, needs=[Making("source", made)], during=both.wait)
    last = Making("last", made, needs=[fetched, compiled])
    # `source` is fetched before `fetched`, whose making then meets that of `compiled`.
    build_all(Cache(tmp_path), [*compiled.needs, fetched, compiled, last], silent)
    assert last.heard == ["compiled", "fetched", "source"]


def test_after_a_failure_nothing_more_is_begun(tmp_path: Path) -> None:
    made: list[str] = []
    failing = threading.Event()

    def fail() -> None:
        failing.set()
        raise BuildError("the network is away")

    def work() -> None:
        failing.wait(10)
        time.sleep(0.05)

    first = Making("first", made, during=fail)
    others = [Making(f"other{number}", made, during=work) for number in range(20)]
    with pytest.raises(BuildError, match="the network is away"):
        build_all(Cache(tmp_path), [first, *others, Making("last", made, needs=[first, *others])], silent)
    assert len(made) < len(others)


def test_after_a_failure_what_is_being_made_stops_at_its_next_step(tmp_path: Path) -> None:
    made: list[str] = []
    heard: list[str] = []
    begun = threading.Event()

    def fail() -> None:
        begun.wait(10)
        raise BuildError("the network is away")

    def tell(line: str) -> None:
        heard.append(line)
        if line == "building compiled":
            begun.set()

    compiled = Making("compiled", made, needs=[Making("source", made)], during=lambda: time.sleep(0.3))
    failing = Making("failing", made, during=fail)
    last = Making("last", made, needs=[compiled, failing])
    with pytest.raises(BuildError, match="the network is away"):
        build_all(Cache(tmp_path), [*compiled.needs, compiled, failing, last], tell)
    assert "built compiled" not in "".join(heard)


def test_a_missing_program_is_named_with_what_to_do() -> None:
    with pytest.raises(BuildError, match="nothing-like-this is not installed; run `make setup`"):
        run(["nothing-like-this"])


def test_a_failing_program_tells_its_last_words() -> None:
    with pytest.raises(BuildError, match=r"exit code 3:\nlast words"):
        run(["sh", "-c", "echo last words >&2; exit 3"])


@pytest.mark.parametrize(("says", "times"), [("dial: i/o timeout", 4), ("503 Service Unavailable", 1), (": 404", 1)])
def test_only_what_may_pass_is_tried_again(says: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    @retried
    def ask() -> None:
        tried.append(says)
        raise BuildError(says)

    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    with pytest.raises(BuildError):
        ask()
    assert len(tried) == times


def test_an_old_go_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "run", lambda _: "go1.19.8\n")
    with pytest.raises(BuildError, match="too old to build Kubernetes"):
        binaries.go_version.__wrapped__()


def test_a_builders_programs_end_with_it(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    text = f"from lab.mirror.command import run; run(['sh', '-c', 'echo $$ > {noted}; exec sleep 60'])"
    builder = subprocess.Popen([sys.executable, "-c", text])
    program = poll("program started", lambda: (noted.exists() and noted.read_text().strip()) or None, timeout_s=10)
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    poll("program ended", lambda: not _lives(int(program)), timeout_s=5, interval_s=0.05)


@pytest.mark.skipif(os.geteuid() != 0, reason="bootstrapping needs root")
def test_a_bootstrap_that_is_killed_leaves_no_process_and_no_mount(tmp_path: Path) -> None:
    fake = tmp_path / "mmdebstrap"
    fake.write_text(f"#!/bin/sh\nmount -t tmpfs haproof-test {tmp_path}/root\ntouch {tmp_path}/ready\nsleep 60\n")
    fake.chmod(0o755)
    (tmp_path / "root").mkdir()
    text = "\n".join(
        [
            "from pathlib import Path",
            "from lab.mirror import apt, bootstrap",
            "apt.sources = lambda _: ()",
            f"bootstrap.bootstrap(Path('{tmp_path}/root'), ['nothing'], variant='minbase')",
        ]
    )
    path = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    builder = subprocess.Popen([sys.executable, "-c", text], env=path)
    poll("bootstrap under way", (tmp_path / "ready").exists, timeout_s=10)
    builder.kill()
    builder.wait()

    def gone() -> bool:
        running = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(fake) in _read(path)]
        return not running and "haproof-test" not in Path("/proc/self/mounts").read_text()

    poll("bootstrap ended", gone, timeout_s=5, interval_s=0.05)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_machine_without_go_has_nothing_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise BuildError("go is not installed")

    monkeypatch.setattr(binaries, "go_version", none)
    assert not is_built(Paths(tmp_path, tmp_path, tmp_path))


needs_gpg = pytest.mark.skipif(shutil.which("gpg-agent") is None, reason="needs gpg-agent (`make setup`)")


@needs_gpg
def test_a_key_is_made_wherever_the_cache_lies_and_leaves_no_key_ring(tmp_path: Path) -> None:
    into = tmp_path / ("x" * 120)  # longer than a socket's name may be
    into.mkdir()
    SigningKey().build(into, {}, silent)
    assert {path.name for path in into.iterdir()} == {"Release.key", "secret.key"}
    assert (into / "Release.key").read_text().startswith("-----BEGIN PGP PUBLIC KEY BLOCK-----")
    assert (into / "secret.key").stat().st_mode & 0o777 == 0o600


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository signed by a key of its own, laid out as the one that nodes use, with one small package."""
    (tmp_path / "key").mkdir()
    SigningKey().build(tmp_path / "key", {}, silent)
    folder, root = tmp_path / "served" / debs.REPOSITORY, tmp_path / "root"
    (folder / "amd64").mkdir(parents=True)
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(debs.PACKAGES[2].control(debs.PACKAGES[2].version))
    run(["dpkg-deb", "--root-owner-group", "-b", root, folder / "amd64/kubectl.deb"])
    debs.publish(folder, tmp_path / "key")
    return folder


def update(repository: Path, work: Path) -> str:
    """What apt itself says of the repository's packages; raises BuildError when it does not trust it."""
    for state in ("lists/partial", "archives/partial"):
        (work / state).mkdir(parents=True)
    key = shutil.copyfile(repository / "Release.key", work / "key.asc")
    (work / "sources.list").write_text(f"deb [arch=amd64 signed-by={key}] file:{repository} /\n")
    settings = {
        "Dir::Etc::SourceList": work / "sources.list",
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": work / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": work,
        "APT::Sandbox::User": "root",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    run(["apt-get", *options, "--error-on=any", "update"])
    return run(["apt-cache", *options, "policy", "kubectl"])


@needs_gpg
def test_apt_trusts_the_repository(tmp_path: Path, repository: Path) -> None:
    assert "Candidate: 1.30.4-1.1" in update(repository, tmp_path / "work")


@needs_gpg
def test_apt_does_not_trust_what_was_changed_after_signing(tmp_path: Path, repository: Path) -> None:
    (repository / "InRelease").write_text((repository / "InRelease").read_text().replace("stable", "stabbe"))
    with pytest.raises(BuildError, match=r"(?s)apt-get .*(BADSIG|invalid)"):
        update(repository, tmp_path / "work")
