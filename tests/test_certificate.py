"""A run's verdict, its folder, the signature under it, and how runs are held against each other."""

import hashlib
import json
import random
import re
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from certificate import versions
from certificate.__main__ import app
from certificate.archive import Archive
from certificate.attestation import FILE, PUBLIC_KEY, NotSigned, own_key, sign, verify
from certificate.evidence import Evidence, secrets_of, without, write
from certificate.figures import FRONT_PAGE, of_drill, of_front_page, of_scenarios
from certificate.promises import Promise
from certificate.record import PromiseRecord, Record, ScenarioRecord, Software, Unreadable
from certificate.trend import effect, effects
from certificate.verdict import NOT_SELECTED, Finding, Outcome, Verdict, of_promise, of_run
from environments.load import find, load
from environments.model import Environment, Machine, Role
from provisioning.action import ActionFailed
from tests.test_load_generator import site, url

HELD, FELL, BROKE = (
    Finding(Verdict.PROVEN),
    Finding(Verdict.REFUTED, "47 s of 40"),
    Finding(Verdict.UNKNOWN, "no route"),
)
P2 = Promise(id="P2", text="Workers are redundant", layer="cluster", built=True)
P1 = Promise(id="P1", text="Masters are redundant", layer="cluster", built=True, limit="two are no majority")
BEGAN = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
DRILL = {
    "drill": "worker-power",
    "command": "python -m chaos run worker-power --chaos lab --seed 3",
    "redundant_s": 51.0,
    "layers": {
        "vip": {
            "verdict": "proven",
            "allowed_s": 47.0,
            "formula": "node grace period 40 s + 7 s",
            "outages": [{"length_s": 40.3, "error_s": 0.05}],
        },
        "sql": {"verdict": "proven", "allowed_s": None, "formula": None, "outages": []},
    },
}


def judged(**found: Finding) -> Mapping[Promise, tuple[Finding, Mapping[str, Finding]]]:
    promises = {"P1": P1, "P2": P2}
    rows = {promises[name]: {f"scenario of {name}": finding} for name, finding in found.items()}
    return {promise: (of_promise(promise, each), each) for promise, each in rows.items()}


@pytest.mark.parametrize(
    ("found", "outcome", "reasons"),
    [
        ({"P2": HELD}, Outcome.CERTIFIED, ()),
        ({"P1": HELD, "P2": HELD}, Outcome.LIMITED, ("P1 refuted by the topology: two are no majority",)),
        ({"P2": FELL, "P1": BROKE}, Outcome.REFUSED, ("P2: scenario of P2: 47 s of 40",)),
        ({"P2": BROKE, "P1": HELD}, Outcome.NOT_JUDGED, ("P2: scenario of P2: no route",)),
        ({"P2": NOT_SELECTED}, Outcome.NOT_JUDGED, ("P2 not exercised: scenario of P2",)),
        ({}, Outcome.NOT_JUDGED, ("no promise was looked at",)),
    ],
)
def test_a_run_is_certified_by_what_it_proved_only(
    found: dict[str, Finding], outcome: Outcome, reasons: tuple[str, ...]
) -> None:
    assert of_run(judged(**found)) == (outcome, reasons)


def record(**changes: object) -> Record:
    scenario = ScenarioRecord(
        feature="features/chaos/workers.feature",
        name="A worker loses its power",
        text="Scenario: A worker loses its power\n  When the power is cut <b>",
        promises=("P2",),
        verdict=Verdict.PROVEN,
        reason="",
        duration_s=90.5,
        evidence=("logs/001-a-worker.txt", "drills/worker-power/verdict.json", "drills/worker-power/timeline.svg"),
        command="pytest --env lab --no-build features/test_promises.py::test_a_worker_loses_its_power",
    )
    plain = Record(
        environment="lab",
        sha256="0" * 64,
        began=BEGAN,
        ended=BEGAN + timedelta(minutes=30),
        command="pytest --chaos lab",
        software=Software(commit="a" * 40, changed=False, python="3.11.2 on linux"),
        versions={"MySQL NDB Cluster": "8.0.41"},
        emulated=("Cloudflare is emulated.",),
        outcome=Outcome.CERTIFIED,
        reasons=(),
        promises=(PromiseRecord(promise=P2, verdict=Verdict.PROVEN, reason=""),),
        scenarios=(scenario,),
    )
    return plain.model_copy(update=changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return finished(tmp_path)


def finished(place: Path) -> Path:
    """A finished run, not signed yet."""
    evidence = Evidence.of(place / "out", "lab", BEGAN)
    drill = evidence.folder / "drills/worker-power"
    drill.mkdir(parents=True)
    (drill / "verdict.json").write_text(json.dumps(DRILL))
    (drill / "timeline.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    assert evidence.log(1, "A worker", "srvk8s-worker01: uname -r (exit code 0)") == "logs/001-a-worker.txt"
    evidence.finish(record(), find("lab").read_bytes())
    evidence.publish()
    return evidence.folder


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return new_key(tmp_path / "key.pem")


def new_key(file: Path) -> Path:
    """`file`, with a private key in it."""
    file.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return file


def test_the_page_shows_each_promise_with_its_evidence_and_needs_nothing_else(folder: Path) -> None:
    page = (folder / "certificate.html").read_text()
    for told in ("Certified", "Workers are redundant", "40.3 ± 0.05 s", "47 s", "uname -r", "Cloudflare is emulated."):
        assert told in page
    assert "the power is cut &lt;b&gt;" in page
    # One click: no evidence lies in a fold within a fold.
    assert not re.search(r"<details>(?:(?!</details>).)*<details>", page, re.DOTALL)
    assert "Again: <code>python -m chaos run worker-power --chaos lab --seed 3</code>" in page
    assert re.findall(r'(?:src|href)="(?!data:|logs/|drills/)', page) == []
    assert "http" not in re.sub(r"data:[^\"]*", "", page)


def test_a_scenario_without_a_drill_tells_how_to_run_it_again(folder: Path) -> None:
    quiet = record().scenarios[0].model_copy(update={"evidence": ("logs/001-a-worker.txt",)})
    write(folder, record(scenarios=(quiet,)))
    page = (folder / "certificate.html").read_text()
    assert "pytest --env lab --no-build features/test_promises.py::test_a_worker_loses_its_power" in page


def test_a_certificate_from_before_commands_and_figures_were_kept_is_still_read(folder: Path) -> None:
    told = json.loads((folder / "certificate.json").read_text())
    for name in ("interrupted", "figures", "compared_with", "figures_compared", "slower"):
        del told[name]
    for scenario in told["scenarios"]:
        del scenario["command"]
    (folder / "certificate.json").write_text(json.dumps(told))
    assert Record.read(folder).judged_again().outcome is Outcome.CERTIFIED


def test_a_certificate_is_read_as_it_was_written_and_judged_again_the_same(folder: Path) -> None:
    assert Record.read(folder).judged_again() == record()
    assert (folder.parent / "latest").resolve() == folder
    cases = (folder / "junit.xml").read_text()
    assert 'tests="1" failures="0" errors="0" skipped="0"' in cases


@pytest.mark.parametrize(
    ("found", "outcome"),
    [({"P2": HELD}, Outcome.NOT_JUDGED), ({"P2": FELL}, Outcome.REFUSED), ({"P2": BROKE}, Outcome.NOT_JUDGED)],
)
def test_an_interrupted_run_certifies_nothing_and_forgives_nothing(found: dict[str, Finding], outcome: Outcome) -> None:
    said, reasons = of_run(judged(**found), "the run was interrupted")
    assert said is outcome
    assert ("the run was interrupted" in reasons) is (outcome is Outcome.NOT_JUDGED)


def test_a_verdict_that_its_scenarios_do_not_bear_out_is_told(folder: Path) -> None:
    fell = record().scenarios[0].model_copy(update={"verdict": Verdict.REFUTED, "reason": "47 s of 40"})
    write(folder, record(scenarios=(fell,)))
    done = CliRunner().invoke(app, ["judge", str(folder)])
    assert done.exit_code == 1
    assert done.stdout.startswith("refused\n  P2: A worker loses its power: 47 s of 40\n")
    assert "P2 is refuted, and the certificate says proven" in done.output


def test_what_is_signed_is_verified_without_the_target(folder: Path, key: Path) -> None:
    sign(folder, key)
    found = verify(folder, [key])
    assert (found.complaints, found.known, found.outcome) == ((), True, "certified")
    assert verify(folder, []).known is False
    assert "PRIVATE" not in (folder / PUBLIC_KEY).read_text()


@pytest.mark.parametrize(
    "name",
    [
        "certificate.json",
        "certificate.html",
        "junit.xml",
        "environment.toml",
        "signer.pem",
        "logs/001-a-worker.txt",
        "drills/worker-power/verdict.json",
        "drills/worker-power/timeline.svg",
    ],
)
def test_a_changed_byte_anywhere_is_named(folder: Path, key: Path, name: str) -> None:
    sign(folder, key)
    held = bytearray((folder / name).read_bytes())
    held[len(held) // 2] ^= 1
    (folder / name).write_bytes(held)
    assert verify(folder, [key]).complaints == (f"{name}: changed",)


def test_what_is_missing_and_what_was_added_is_named(folder: Path, key: Path) -> None:
    sign(folder, key)
    (folder / "junit.xml").unlink()
    (folder / "drills/more.json").write_text("{}")
    assert verify(folder, [key]).complaints == ("junit.xml: missing", "drills/more.json: not signed")


def test_a_link_was_never_signed_also_where_it_leads_to_the_very_same(folder: Path, key: Path) -> None:
    sign(folder, key)
    (folder / "junit.xml").rename(folder.parent / "junit.xml")
    (folder / "junit.xml").symlink_to(folder.parent / "junit.xml")
    (folder / "elsewhere").symlink_to("/")
    assert verify(folder, [key]).complaints == (
        "junit.xml: missing",
        "elsewhere: no file, and not signed",
        "junit.xml: no file, and not signed",
    )


def test_an_unknown_key_is_told_where_none_was_named(folder: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sign(folder, key)
    monkeypatch.setenv("XDG_DATA_HOME", str(folder.parent / "nobody"))
    done = CliRunner().invoke(app, ["verify", str(folder)])
    assert (done.exit_code, "anybody may have signed it" in " ".join(done.output.split())) == (0, True)
    done = CliRunner().invoke(app, ["verify", str(folder), "--key", str(key)])
    assert (done.exit_code, "a key that you trust" in done.output) == (0, True)
    assert "anybody" not in done.output


def test_a_forged_attestation_and_a_strangers_are_told_apart(folder: Path, key: Path, tmp_path: Path) -> None:
    sign(folder, key)
    envelope = json.loads((folder / FILE).read_text())
    sign(folder, new_key(tmp_path / "other.pem"))
    stranger = CliRunner().invoke(app, ["verify", str(folder), "--key", str(key)])
    assert (stranger.exit_code, "none of the keys" in stranger.output) == (1, True)
    # The payload of one, under the signature of the other.
    forged = json.loads((folder / FILE).read_text()) | {"payload": envelope["payload"][:-8] + "AAAAAAA="}
    (folder / FILE).write_text(json.dumps(forged))
    assert "its signature is not that of" in verify(folder, []).complaints[0]
    (folder / FILE).write_text("{}")
    with pytest.raises(NotSigned, match="is no DSSE envelope"):
        verify(folder, [])
    (folder / FILE).unlink()
    unsigned = CliRunner().invoke(app, ["verify", str(folder)])
    assert (unsigned.exit_code, "holds no attestation" in unsigned.output) == (2, True)


def test_a_key_that_is_none_is_one_clear_message(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("not a key")
    with pytest.raises(NotSigned, match=r"note\.txt is no private key"):
        sign(folder, tmp_path / "note.txt")


def test_no_key_is_made_but_ones_own_and_for_its_owner_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    sign(folder, own_key())
    assert own_key().stat().st_mode & 0o777 == 0o600
    assert verify(folder, [own_key()]).complaints == ()
    with pytest.raises(NotSigned, match=r"mistyped\.pem is no private key"):
        sign(folder, tmp_path / "mistyped.pem")
    assert not (tmp_path / "mistyped.pem").exists()


@given(st.binary() | st.text().map(str.encode) | st.just(b'{"environment": "lab"}'))
def test_whatever_lies_there_in_place_of_a_certificate_is_one_clear_message(
    tmp_path_factory: pytest.TempPathFactory, held: bytes
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "certificate.json").write_bytes(held)
    with pytest.raises(Unreadable, match=r"certificate\.json: "):
        Record.read(folder)
    shutil.rmtree(folder)


def test_secrets_are_blotted_out(monkeypatch: pytest.MonkeyPatch) -> None:
    text = re.sub(r'"file:[^"]+"', '"file:/dev/null"', find("seed").read_text())
    for name in re.findall(r"env:(\w+)", text):
        monkeypatch.setenv(name, f"secret of {name}")
    found = secrets_of(Environment.model_validate(tomllib.loads(text)))
    assert len(found) >= 3
    assert "secret of" not in without(found, " and ".join(found))


# Runs held against each other


def test_a_figure_is_worse_when_it_is_beyond_what_it_varies_by() -> None:
    usual = [40.1, 40.9, 39.8, 40.4]
    assert effect(41.0, usual[:2]) is None
    steady, worse = effect(41.0, usual), effect(52.0, usual)
    assert steady is not None
    assert worse is not None
    assert not steady.is_worse
    assert worse.is_worse
    assert worse.difference == pytest.approx(11.7)
    assert worse.low < worse.difference < worse.high
    never_away = effect(0.05, [0.0, 0.0, 0.0])
    assert never_away is not None
    assert not never_away.is_worse


def test_the_more_figures_are_looked_at_the_less_does_chance_make_a_finding() -> None:
    usual = [40.1, 40.9, 39.8, 40.4]
    alone = effects({"a": 42.5}, {"a": usual})
    assert alone["a"].is_worse
    among = effects({str(n): 42.5 if n == 7 else 40.3 for n in range(60)}, {str(n): usual for n in range(60)})
    assert not among["7"].is_worse
    assert effects({"a": 60.0, "new": 1.0}, {"a": usual}) == effects({"a": 60.0}, {"a": usual})


def test_noise_is_a_finding_in_one_run_of_forty_at_most() -> None:
    """Runs of a target that never changes: sixty figures each, of which none may be taken for worse."""
    dice = random.Random(5)

    def figures() -> dict[str, float]:
        return {str(number): dice.gauss(10, 1) for number in range(60)}

    false_alarms = 0
    for _ in range(60):
        before = [figures() for _ in range(6)]
        earlier = {name: [run[name] for run in before] for name in before[0]}
        false_alarms += any(found.is_worse for found in effects(figures(), earlier).values())
    assert false_alarms <= 6


def test_figures_of_a_drill() -> None:
    assert dict(of_drill(DRILL)) == {"worker-power: vip away, s": 40.3, "worker-power: whole again, s": 51.0}


def test_a_nightly_run_has_figures_without_a_drill(folder: Path) -> None:
    (drill,) = record().scenarios
    quick = drill.model_copy(update={"name": "Pods answer", "evidence": (), "duration_s": 2.5})
    others = [
        one.model_copy(update={"name": f"{one.name}, {verdict}", "verdict": verdict, "evidence": ()})
        for one in (drill, quick)
        for verdict in Verdict
        if verdict is not Verdict.PROVEN
    ]
    found = of_scenarios([drill, quick, *others], folder)
    assert found == dict(of_drill(DRILL)) | {"Pods answer: took, s": 2.5}


def test_the_front_page_is_timed_and_has_no_figure_where_it_fails() -> None:
    with site() as server:
        assert of_front_page(url(server))[FRONT_PAGE] > 0
        assert of_front_page(url(server, "/broken")) == {}
    assert of_front_page("http://127.0.0.1:9/") == {}


def kept(place: Path, number: int, away_s: float, sha256: str = "0" * 64) -> Record:
    """A run of the history, compared with those before it."""
    began = BEGAN + timedelta(days=number)
    with Archive.at(place / "haproof/history.sqlite") as archive:
        made = archive.compared(record(began=began, sha256=sha256, figures={"worker-power: vip away, s": away_s}))
        archive.add(place / str(number), made)
    return made


def test_a_slower_recovery_is_found_among_runs_of_the_same_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, away_s in enumerate((40.0, 41.0, 40.5)):
        assert kept(tmp_path, number, away_s).slower == ()
    slow = kept(tmp_path, 3, 55.0)
    assert (slow.compared_with, slow.figures_compared) == (3, 1)
    assert str(slow.slower[0]).startswith("slower than before: worker-power: vip away, s: 55.0, usually 40.5; +14.5 (+")
    # Another description is another target.
    other = kept(tmp_path, 4, 90.0, "1" * 64)
    assert (other.slower, other.compared_with) == ((), 0)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    told = CliRunner().invoke(app, ["history"]).output
    assert "without 4 runs of earlier descriptions" in told
    assert "55.0" not in told
    again = CliRunner().invoke(app, ["history", "--last", "1"]).output
    assert "needs 3 earlier runs" in again


def test_what_became_slower_is_in_the_certificate_that_is_signed(folder: Path, key: Path, tmp_path: Path) -> None:
    for number, away_s in enumerate((40.0, 41.0, 40.5)):
        kept(tmp_path, number, away_s)
    write(folder, kept(tmp_path, 3, 55.0))
    sign(folder, key)
    page = (folder / "certificate.html").read_text()
    assert "slower than in 3 earlier runs" in page
    assert "worker-power: vip away, s" in page
    assert Record.read(folder).slower[0].usual == pytest.approx(40.5)
    assert verify(folder, [key]).complaints == ()


@pytest.mark.parametrize(
    ("count", "compared", "told"),
    [
        (0, 0, "Not compared: 0 earlier runs"),
        (3, 0, "Not compared: of this run's 2 figures, none is in 3 of the 3 earlier runs"),
        (3, 1, "Nothing that was compared is slower than in 3 earlier runs"),
    ],
)
def test_nothing_slower_is_not_said_where_nothing_was_compared(
    folder: Path, count: int, compared: int, told: str
) -> None:
    write(folder, record(compared_with=count, figures_compared=compared, figures={"a": 1.0, "b": 2.0}))
    page = (folder / "certificate.html").read_text()
    assert told in page
    assert ("Compared: 1 of this run's 2 figures" in page) is (compared == 1)


def test_a_first_drill_after_quiet_runs_is_not_compared(tmp_path: Path) -> None:
    for number in range(3):
        kept(tmp_path, number, 40.0)
    with Archive.at(tmp_path / "haproof/history.sqlite") as archive:
        drill = archive.compared(record(figures={"master-power: vip away, s": 50.0}))
    assert (drill.compared_with, drill.figures_compared, drill.slower) == (3, 0, ())


def test_a_history_that_is_none_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    empty = CliRunner().invoke(app, ["history"])
    assert "no run of lab is kept yet" in empty.output
    (tmp_path / "haproof/history.sqlite").write_text("not a database, but long enough to be looked at as one" * 20)
    broken = CliRunner().invoke(app, ["history"])
    assert (broken.exit_code, "cannot be used as the history" in broken.output) == (2, True)


# A run of pytest


CONFTEST = """
import pytest
from environments.load import find, load
from provisioning.session import Session
from provisioning.state import State

def pytest_addoption(parser):
    parser.addoption("--env")

@pytest.fixture(scope="session")
def target(pytestconfig):
    environment = load(find(pytestconfig.option.env))
    return Session(environment, State.of(environment.name))
"""
STEPS = """
import pytest
from pytest_bdd import given, scenarios

scenarios(".")

@given("it holds")
def holds(target): pass

@given("it breaks off")
def breaks_off(target, record_property): {breaking}
"""
FEATURE = """
Feature: A run
  @P1
  Scenario: First
    Given it holds
  @P1
  Scenario: Second
    Given it breaks off
  @P2
  Scenario: Third
    Given it holds
"""


@dataclass
class Project:
    """A checkout with three scenarios, and what `pytest` made of it."""

    pytester: pytest.Pytester

    def run(self, breaking: str, *arguments: str) -> int:
        pytester = self.pytester
        (folder := pytester.path / "features").mkdir()
        (folder / "run.feature").write_text(FEATURE)
        rows = [f'[[promise]]\nid = "{name}"\ntext = "{name}"\nlayer = "x"\nbuilt = true\n' for name in ("P1", "P2")]
        (folder / "promises.toml").write_text("".join(rows))
        (folder / "test_run.py").write_text(STEPS.format(breaking=breaking))
        pytester.makeconftest(CONFTEST)
        pytester.makeini("[pytest]\nbdd_features_base_dir = features\nmarkers =\n    P1\n    P2\n")
        (pytester.path / "secret").write_text("a secret word")
        described = re.sub(r'"(file|env):[^"]+"', f'"file:{pytester.path}/secret"', find("seed").read_text())
        key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        (pytester.path / "key").write_bytes(key)
        described = re.sub(r'private_key = "[^"]+"', f'private_key = "file:{pytester.path}/key"', described)
        (pytester.path / "seed.toml").write_text(described)
        words = ["-p", "certificate.plugin", "--env", "seed.toml", *arguments, "features"]
        return int(pytester.inline_run(*words, no_reraise_ctrlc=True).ret or 0)

    @property
    def record(self) -> Record:
        return Record.read(self.pytester.path / "out/seed/latest")


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setattr("certificate.versions.of_target", lambda _: {})
    monkeypatch.setattr("certificate.figures.of_front_page", lambda _: {FRONT_PAGE: 54.0})
    monkeypatch.setenv("XDG_STATE_HOME", str(pytester.path / "state"))
    monkeypatch.setenv("XDG_DATA_HOME", str(pytester.path / "data"))
    return Project(pytester)


@pytest.mark.parametrize(
    ("breaking", "words", "code"),
    [
        ("raise KeyboardInterrupt", (), 2),
        ('pytest.exit("enough", returncode=9)', (), 9),
        ("raise OSError('no route')", ("-x",), 6),
    ],
    ids=["ctrl-c", "pytest.exit", "-x"],
)
def test_what_was_selected_and_not_judged_is_never_certified(
    breaking: str, words: tuple[str, ...], code: int, project: Project
) -> None:
    assert project.run(breaking, *words) == code
    record = project.record
    assert {one.name: one.verdict for one in record.scenarios} == {
        "First": Verdict.PROVEN,
        "Second": Verdict.UNKNOWN,
        "Third": Verdict.UNKNOWN,
    }
    assert record.outcome is Outcome.NOT_JUDGED
    assert record.scenarios[2].reason == "selected, and the run ended before it was judged"
    assert record.judged_again() == record


def test_a_run_that_pytest_itself_broke_off_certifies_nothing_though_all_was_judged(project: Project) -> None:
    breaks = "def pytest_runtest_logfinish(nodeid):\n    if 'third' in nodeid: raise SystemError('of a plugin')"
    project.pytester.makepyfile(broken=breaks)
    project.pytester.syspathinsert()
    assert project.run("pass", "-p", "broken") == 3
    record = project.record
    assert {one.verdict for one in record.scenarios} == {Verdict.PROVEN}
    assert record.outcome is Outcome.NOT_JUDGED
    assert record.reasons == ("the run was interrupted (pytest's exit code 3)",)
    assert record.judged_again() == record


def test_what_was_left_out_on_purpose_is_not_exercised_and_no_interruption(project: Project) -> None:
    assert project.run("pass", "-k", "first or third") == 0
    record = project.record
    assert record.scenarios[1].verdict is Verdict.NOT_EXERCISED
    assert (record.outcome, record.interrupted) == (Outcome.LIMITED, "")


def test_a_run_that_could_not_be_judged_has_an_exit_code_of_its_own(project: Project) -> None:
    assert project.run("raise OSError('no route')") == 6
    assert project.record.outcome is Outcome.NOT_JUDGED


def test_a_drill_that_could_not_begin_takes_no_certificate_from_the_others(project: Project) -> None:
    assert project.run("""record_property("evidence", "out/seed/never-made")""") == 0
    assert project.record.outcome is Outcome.CERTIFIED
    assert project.record.scenarios[1].evidence == ()


def test_a_run_is_kept_whole_signed_and_remembered(project: Project) -> None:
    assert project.run("pass") == 0
    folder, record = project.pytester.path / "out/seed/latest", project.record
    assert record.outcome is Outcome.CERTIFIED
    assert record.scenarios[0].command == "pytest --env seed.toml --no-build features/test_run.py::test_first"
    assert record.figures[FRONT_PAGE] == 54.0
    assert set(record.figures) == {FRONT_PAGE, *(f"{name}: took, s" for name in ("First", "Second", "Third"))}
    assert verify(folder, []).complaints == ()
    with Archive.at(project.pytester.path / "state/haproof/history.sqlite") as archive:
        (run,) = archive.runs("seed", 5)
    assert run.figures == dict(record.figures)


@pytest.mark.parametrize("change", ["file.write_text('another')", "file.unlink()"])
def test_what_was_judged_is_certified_though_it_changed_meanwhile(
    project: Project, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    def of_software(root: Path) -> Software:
        return Software(commit="b" * 40 if (root / "changed").exists() else "a" * 40, changed=False, python="3")

    monkeypatch.setattr(versions, "of_software", of_software)
    steps = ("from pathlib import Path", "file = Path('seed.toml')", "Path('changed').touch()", change)
    assert project.run("; ".join(steps)) == 0
    folder, record = project.pytester.path / "out/seed/latest", project.record
    kept = (folder / "environment.toml").read_bytes()
    assert b'name = "seed"' in kept
    assert record.sha256 == hashlib.sha256(kept).hexdigest()
    assert record.software.commit == "a" * 40
    assert verify(folder, []).complaints == ()


def test_a_history_that_cannot_be_kept_does_not_take_the_certificate_back(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    (project.pytester.path / "state/haproof").mkdir(parents=True)
    (project.pytester.path / "state/haproof/history.sqlite").write_text("not a database, but long enough" * 40)
    assert project.run("pass") == 0
    told = capsys.readouterr().out
    assert "written and signed, and not kept in the history" in told
    assert "nothing is certified" not in told
    assert verify(project.pytester.path / "out/seed/latest", []).complaints == ()


@pytest.mark.parametrize("name", ["note.txt", "mistyped.pem", ""])
def test_a_named_key_that_cannot_sign_ends_the_run_before_anything_is_judged(
    project: Project, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (project.pytester.path / "note.txt").write_text("not a key")
    assert project.run("pass", "--signing-key", name) == pytest.ExitCode.USAGE_ERROR
    told = capsys.readouterr()
    assert f"--signing-key: {name or '.'} is no private key" in told.out + told.err
    assert "leave the option out to sign with your own" in told.out + told.err
    assert not (project.pytester.path / "out").exists()
    assert not (project.pytester.path / "mistyped.pem").exists()


def test_a_key_that_is_gone_at_the_end_certifies_nothing(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    new_key(project.pytester.path / "key.pem")
    assert project.run("__import__('pathlib').Path('key.pem').unlink()", "--signing-key", "key.pem") == 6
    assert "nothing is certified" in capsys.readouterr().out
    assert not (project.pytester.path / "out/seed/latest").exists()


# Versions


def test_every_part_is_asked_for_its_own_version(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def execute(_: object, pod: str, __: str, *, command: list[str], **___: object) -> str:
        asked.append((pod, *command))
        return "6.6.1" if "wp-includes" in command[-1] else "etcd Version: 3.5.12\nGit SHA: e7b3bb6"

    def check(machine: Machine, script: str, **_: object) -> str:
        if machine.role is Role.TUNNEL:
            raise ActionFailed("a command failed with exit code 127", machine=machine.name)
        return "NFS-Ganesha Release = V4.3\nmore"

    pods = [
        SimpleNamespace(metadata=SimpleNamespace(name=name), status=SimpleNamespace(phase=phase))
        for name, phase in (("a", "Running"), ("b", "Pending"))
    ]
    core = SimpleNamespace(
        list_namespaced_pod=lambda *_, **__: SimpleNamespace(items=pods), connect_get_namespaced_pod_exec=None
    )
    session = SimpleNamespace(
        hypervisor=SimpleNamespace(version=str),
        cluster=SimpleNamespace(core=core),
        shell=SimpleNamespace(check=check),
        environment=load(find("lab")),
    )
    monkeypatch.setattr(versions, "stream", execute)
    parts = versions.parts(session)  # type: ignore[arg-type]
    told = {name: versions.told(parts[name]) for name in ("WordPress", "etcd", "NFS server", "connector")}
    assert told == {
        "WordPress": "6.6.1",
        "etcd": "etcd Version: 3.5.12",
        "NFS server": "NFS-Ganesha Release = V4.3",
        "connector": "not told: ActionFailed",
    }
    assert {pod for pod, *_ in asked} == {"a"}
