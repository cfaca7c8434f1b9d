"""What is heard of a target that is lied to, and who may lie to it; needs no target."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from certificate.verdict import Verdict
from environments.load import find, load
from environments.model import Chaos
from provisioning.report import Terminal
from tests.sabotage import forked
from tests.sabotage import stage as stages
from tests.sabotage.lie import Lie, nothing
from tests.sabotage.stage import NotJudged, NotPermitted, Stage, prepared
from tests.sabotage.test_lies import recover

LAB = load(find("lab"))
LIE = Lie("swap", "nodes", ("P12",), "in fstab", nothing)


def staged() -> Stage:
    return Stage(SimpleNamespace(environment=LAB), "lab")  # type: ignore[arg-type]


def said(monkeypatch: pytest.MonkeyPatch, code: int, heard: dict[str, tuple[str, str]] | None) -> None:
    """Pytest ends with `code`, and its ear heard this."""

    def run(arguments: Sequence[str], _: Path, output: Path, __: float) -> int:
        if heard is not None:
            Path(arguments[arguments.index("--heard") + 1]).write_text(json.dumps(heard))
        output.write_text("the lab is held by another run")
        return code

    monkeypatch.setattr(forked, "run", run)


HELD = ("proven", "")


def test_what_was_heard_is_told_by_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    said(monkeypatch, 1, {"No swap": ("refuted", "in fstab"), "Front page": HELD})
    found = staged().judge(["No swap", "Front page"])
    assert {name: finding.verdict for name, finding in found.items()} == {
        "No swap": Verdict.REFUTED,
        "Front page": Verdict.PROVEN,
    }


@pytest.mark.parametrize(
    ("code", "heard", "told"),
    [
        (2, {"No swap": HELD, "Front page": HELD}, "pytest ended with 2: the lab is held by another run"),
        (0, None, "pytest ended with 0"),
        (0, {"No swap": HELD}, "nothing was heard of Front page"),
    ],
)
def test_a_run_that_did_not_judge_all_is_no_quiet_one(
    code: int, heard: dict[str, tuple[str, str]] | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said(monkeypatch, code, heard)
    with pytest.raises(NotJudged, match=told):
        staged().judge(["No swap", "Front page"])


def test_scenarios_that_do_not_end_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: object, __: object, output: Path, timeout_s: float) -> int:
        output.write_text("the last scenario")
        raise forked.TimedOut(f"did not end within {timeout_s:g} s")

    monkeypatch.setattr(forked, "run", run)
    with pytest.raises(NotJudged, match="did not end within 3600 s: the last scenario"):
        staged().judge(["No swap"])


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder of tests."""
    (tmp_path / "test_it.py").write_text(
        "import os, sys, time\n"
        "def test_what_is_imported():\n"
        "    ours = {'steps', 'provisioning', 'chaos', 'certificate'}\n"
        "    assert not ours & sys.modules.keys()\n"
        "    assert 'kubernetes.client' in sys.modules\n"
        "def test_long():\n"
        "    open('pid', 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
    )
    return tmp_path


def test_pytest_is_forked_with_libraries_and_nothing_of_ours(checkout: Path) -> None:
    for expression, code, told in (("imported", 0, "1 passed"), ("nothing", 5, "2 deselected")):
        said = checkout / "said"
        assert forked.run(["-k", expression, "-p", "no:cacheprovider"], checkout, said, 60) == code, said.read_text()
        assert told in said.read_text()


def test_pytest_that_does_not_end_is_ended(checkout: Path) -> None:
    with pytest.raises(forked.TimedOut, match="did not end within 5 s"):
        forked.run(["-k", "long", "-p", "no:cacheprovider"], checkout, checkout / "said", 5)
    assert not Path("/proc", (checkout / "pid").read_text()).exists()


def test_a_scenario_that_a_run_did_not_come_to_is_heard_as_not_judged(pytester: pytest.Pytester) -> None:
    folder = pytester.mkdir("features")
    (folder / "promises.toml").write_text('[[promise]]\nid = "P1"\ntext = "x."\nlayer = "x"\nbuilt = true\n')
    (folder / "x.feature").write_text(
        "@P1\nFeature: X\n  Scenario: First\n    Given the end\n  Scenario: Second\n    Given the end\n"
    )
    (folder / "test_x.py").write_text(
        "import pytest\nfrom pytest_bdd import given, scenarios\nscenarios('.')\n"
        "@given('the end')\ndef end(): pytest.exit('no target', returncode=2)\n"
    )
    pytester.makeini("[pytest]\nbdd_features_base_dir = features\nmarkers =\n    P1\n")
    wanted, heard = pytester.path / "wanted.json", pytester.path / "heard.json"
    wanted.write_text(json.dumps(["First", "Second"]))
    ears = ["-p", "certificate.plugin", "-p", "tests.sabotage.ear", "--scenarios", str(wanted), "--heard", str(heard)]
    pytester.runpytest_inprocess(*ears, "features")
    assert {name: verdict for name, (verdict, _) in json.loads(heard.read_text()).items()} == {
        "First": "not judged",
        "Second": "not judged",
    }


@pytest.mark.parametrize(
    ("named", "allowed", "told"),
    [("", True, "--chaos lab"), ("seed", True, "--chaos says “seed”"), ("lab", False, "chaos.allowed is false")],
)
def test_a_target_is_lied_to_by_permission_only(
    named: str, *, allowed: bool, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = LAB.model_copy(update={"chaos": Chaos(allowed=allowed)})
    monkeypatch.setattr(stages, "open_session", lambda _: SimpleNamespace(environment=described))
    with pytest.raises(NotPermitted, match=told):
        prepared("lab", named, Terminal(Console()), keep=True)


class Hypervisor:
    """Has these snapshots of every machine."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def call(self, method: str, path: str) -> Any:
        """Snapshots."""
        return [{"name": name} for name in self._names]


def test_a_target_that_stays_broken_is_rolled_back_or_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    back: list[str] = []
    monkeypatch.setattr(Stage, "roll_back", lambda _: back.append("rolled back"))
    kept, new = (
        Stage(SimpleNamespace(environment=LAB, hypervisor=Hypervisor(*names)), "lab")  # type: ignore[arg-type]
        for names in (("built", "current"), ("current",))
    )
    recover(kept, LIE)
    assert back == ["rolled back"]
    with pytest.raises(pytest.exit.Exception, match=r"swap is not taken back.*it was not kept"):
        recover(new, LIE)
