"""A run's verdict, its folder, the signature under it, and how runs are held against each other."""

import json
import re
import shutil
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from certificate.__main__ import app
from certificate.archive import Archive
from certificate.attestation import FILE, PUBLIC_KEY, NotSigned, sign, signer_of, verify
from certificate.evidence import Evidence, secrets_of, without, write
from certificate.figures import of_drill
from certificate.promises import Promise
from certificate.record import PromiseRecord, Record, ScenarioRecord, Software, Unreadable
from certificate.trend import effect
from certificate.verdict import NOT_SELECTED, Finding, Outcome, Verdict, of_promise, of_run
from environments.load import find
from environments.model import Environment

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
    evidence.finish(record(), find("lab"))
    evidence.publish()
    return evidence.folder


@pytest.fixture
def key(tmp_path: Path) -> Path:
    signer_of(tmp_path / "key.pem")
    return tmp_path / "key.pem"


def test_the_page_shows_each_promise_with_its_evidence_and_needs_nothing_else(folder: Path) -> None:
    page = (folder / "certificate.html").read_text()
    for told in ("Certified", "Workers are redundant", "40.3 ± 0.05 s", "47 s", "uname -r", "Cloudflare is emulated."):
        assert told in page
    assert "the power is cut &lt;b&gt;" in page
    assert re.findall(r'(?:src|href)="(?!data:|logs/|drills/)', page) == []
    assert "http" not in re.sub(r"data:[^\"]*", "", page)


def test_a_certificate_is_read_as_it_was_written_and_judged_again_the_same(folder: Path) -> None:
    assert Record.read(folder).judged_again() == record()
    assert (folder.parent / "latest").resolve() == folder
    cases = (folder / "junit.xml").read_text()
    assert 'tests="1" failures="0" errors="0" skipped="0"' in cases


def test_a_verdict_that_its_scenarios_do_not_bear_out_is_told(folder: Path) -> None:
    fell = record().scenarios[0].model_copy(update={"verdict": Verdict.REFUTED, "reason": "47 s of 40"})
    write(folder, record(scenarios=(fell,)))
    done = CliRunner().invoke(app, ["judge", str(folder)])
    assert done.exit_code == 1
    assert done.stdout.startswith("refused\n  P2: A worker loses its power: 47 s of 40\n")
    assert "P2 is refuted, and the certificate says proven" in done.output


def test_what_is_signed_is_verified_without_the_target(folder: Path, key: Path) -> None:
    sign(folder, key)
    assert key.stat().st_mode & 0o777 == 0o600
    found = verify(folder, [key])
    assert (found.complaints, found.known, found.outcome) == ((), True, "certified")
    assert verify(folder, []).known is False
    assert "PRIVATE" not in (folder / PUBLIC_KEY).read_text()


@pytest.mark.parametrize(
    "name",
    ["certificate.json", "junit.xml", "environment.toml", "logs/001-a-worker.txt", "drills/worker-power/verdict.json"],
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


def test_a_forged_attestation_and_a_strangers_are_told_apart(folder: Path, key: Path, tmp_path: Path) -> None:
    sign(folder, key)
    envelope = json.loads((folder / FILE).read_text())
    signer_of(tmp_path / "other.pem")
    sign(folder, tmp_path / "other.pem")
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


def test_figures_of_a_drill() -> None:
    assert dict(of_drill(DRILL)) == {"worker-power: vip away, s": 40.3, "worker-power: whole again, s": 51.0}


def test_a_slower_recovery_is_found_among_runs_of_the_same_environment(folder: Path, tmp_path: Path) -> None:
    def run(number: int, away_s: float, sha256: str = "0" * 64) -> list[str]:
        place = tmp_path / f"run{number}"
        shutil.copytree(folder, place)
        told = DRILL | {"layers": {"vip": DRILL["layers"]["vip"] | {"outages": [{"length_s": away_s}]}}}  # type: ignore[index]
        (place / "drills/worker-power/verdict.json").write_text(json.dumps(told))
        with Archive.at(tmp_path / "history.sqlite") as archive:
            began = BEGAN + timedelta(days=number)
            return [str(change) for change in archive.add(place, record(began=began, sha256=sha256))]

    for number, away_s in enumerate((40.0, 41.0, 40.5)):
        assert run(number, away_s) == []
    (told,) = run(3, 55.0)
    assert told.startswith("slower than before: worker-power: vip away, s: 55.0, usually 40.5; +14.5 (95 %: +")
    # Another description is another target.
    assert run(4, 90.0, "1" * 64) == []
    with Archive.at(tmp_path / "history.sqlite") as archive:
        runs = archive.runs("lab", 2)
    assert [run.figures["worker-power: vip away, s"] for run in runs] == [55.0, 90.0]
    assert runs[0].promises == {"P2": "proven"}


def test_a_history_that_is_none_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    empty = CliRunner().invoke(app, ["history"])
    assert "no run of lab is kept yet" in empty.output
    (tmp_path / "haproof/history.sqlite").write_text("not a database, but long enough to be looked at as one" * 20)
    broken = CliRunner().invoke(app, ["history"])
    assert (broken.exit_code, "cannot be used as the history" in broken.output) == (2, True)
