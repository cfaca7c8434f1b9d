"""Histories that somebody made up, and what is said of them."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from certificate.verdict import Verdict
from chaos.__main__ import app
from chaos.history import (
    FILE,
    Aborted,
    Allowed,
    Event,
    Fault,
    Found,
    Header,
    History,
    HistoryError,
    Phase,
    Probe,
    Recorder,
    Seen,
    Write,
)
from chaos.judgement import judge
from chaos.outage import Outage

LAYERS = ("vip", "sql", "ndb", "nfs", "public", "pod/a", "pod/b", "page/vip", "page/public")
INTERVALS_S = dict.fromkeys(LAYERS, 0.1)
HEADER = Header(drill="d", environment="lab", seed=1, command="python -m chaos", at_s=0.0, intervals_s=INTERVALS_S)
PHASES: Sequence[tuple[str, float]] = (
    ("steady", 0.0), ("fault", 10.0), ("redundancy", 31.0), ("afterwards", 33.0), ("verification", 36.0), ("end", 40.0),
)  # fmt: skip
DOWN = (12.0, 18.0)


def life(inject_s: float = 11.9, healed_s: float | None = 30.0) -> list[Event]:
    moments = {"inject": inject_s, "injected": inject_s + 0.2}
    if healed_s is not None:
        moments |= {"heal": healed_s - 0.3, "healed": healed_s}
    return [
        Fault.model_validate({"step": step, "name": "power cut", "targets": ("srvdbm01",), "at_s": at_s})
        for step, at_s in moments.items()
    ]


def probes(layer: str, down: tuple[float, float] | None = DOWN, until_s: float = 40.0) -> Iterable[Probe]:
    for number in range(int(until_s * 10)):
        at_s = number / 10
        failed = down is not None and down[0] <= at_s < down[1]
        yield Probe(
            layer=layer, intended_s=at_s, started_s=at_s, ended_s=at_s + 0.01, error="TimeoutError" if failed else ""
        )


def probes_without(layer: str, since_s: float, until_s: float) -> list[Probe]:
    return [probe for probe in probes(layer, None) if not since_s <= probe.intended_s < until_s]


def writes(*names: str, error: str = "") -> list[Write]:
    return [Write(sort="row", name=n, digest=n, intended_s=5.0, started_s=5.0, ended_s=5.1, error=error) for n in names]


def there(*names: str, digest: str = "") -> list[Found]:
    return [Found(sort="row", name=name, digest=digest or name) for name in names]


def history(*events: Iterable[Event], phases: Sequence[tuple[str, float]] = PHASES) -> History:
    marks = [Phase.model_validate({"name": name, "at_s": at_s}) for name, at_s in phases]
    return History([HEADER, *marks, *(event for some in events for event in some)])


def budget(seconds: float, layer: str = "vip", **more: float) -> list[Event]:
    return [Allowed.model_validate({"layer": layer, "seconds": seconds, "formula": "4 x 1.5 s", **more})]


def test_an_outage_within_its_budget_is_proven() -> None:
    said = judge(history(life(), probes("vip"), budget(7), writes("a", "b"), there("a", "b")))
    assert said.finding.verdict is Verdict.PROVEN
    assert said.layers[0].restored_s == pytest.approx(6.1, abs=0.15)
    assert said.redundant_s == pytest.approx(3.0)


def test_an_outage_beyond_its_budget_is_refuted_with_both_figures() -> None:
    said = judge(history(life(), probes("vip"), budget(4), writes("a"), there("a")))
    assert said.finding.verdict is Verdict.REFUTED
    assert "back after 6.1 s (± 0.10 s) of 4.0 s: 4 x 1.5 s" in said.finding.reason


def failing(*down: tuple[float, float], share: int = 1, layer: str = "vip") -> list[Probe]:
    """Meanwhile every `share`-th question fails."""
    return [
        probe.model_copy(update={"error": "TimeoutError"})
        if number % share == 0 and any(since_s <= probe.intended_s < until_s for since_s, until_s in down)
        else probe
        for number, probe in enumerate(probes(layer, None))
    ]


@pytest.mark.parametrize(
    ("allowed", "down", "told"),
    [
        (budget(7), [(12, 18)], ""),
        # The heal begins at 29.7 s: each phase for itself is within its budget, and both together are not.
        (budget(7), [(12, 18), (30, 35)], "failed, before and after the heal, for 10.8 s"),
        (budget(7, back_s=5.5), [(12, 18), (30, 35)], ""),
        (budget(20, held_s=18), [(12, 29)], ""),
        (budget(20, held_s=18), [(12, 13), (34, 35)], "was back, once healed, after 5.3 s (± 0.10 s) of 2.0 s"),
        (budget(20, back_s=6), [(34, 35)], ""),
        (budget(20, total_s=5), [(12, 18)], "answered nobody for 6.0 s (± 0.10 s) of 5.0 s"),
        (budget(20, total_s=5), [(12, 16), (30, 34)], ""),
    ],
)
def test_each_phase_keeps_to_its_own_budget_and_both_to_one(
    allowed: list[Event], down: list[tuple[float, float]], told: str
) -> None:
    said = judge(history(life(), failing(*down), allowed, writes("a"), there("a")))
    assert said.finding.verdict is (Verdict.REFUTED if told else Verdict.PROVEN)
    assert told in said.finding.reason


def test_failing_one_in_three_is_judged_apart_from_answering_nobody() -> None:
    some = history(life(), failing((12, 29), share=3), budget(20, total_s=5), writes("a"), there("a"))
    assert judge(some).finding.verdict is Verdict.PROVEN
    assert [outage.total for outage in judge(some).layers[0].outages] == [False]


def test_every_turn_has_the_whole_budget() -> None:
    both = [*life(11.0, 16.0), *life(22.0, 27.0)]
    said = judge(history(both, failing((11.1, 15), (22.1, 26)), budget(4.5), writes("a"), there("a")))
    assert said.finding.verdict is Verdict.PROVEN


def test_a_whole_page_is_waited_for_longer_than_an_answer() -> None:
    def held(layer: str) -> list[Event]:
        waiting = [
            p.model_copy(update={"ended_s": max(p.ended_s, 18.0)}) if 12 <= p.intended_s < 18 else p
            for p in probes(layer, None)
        ]
        return [*waiting, *budget(0, layer)]

    written = (writes("a"), there("a"))
    assert judge(history(life(), held("vip"), *written)).finding.verdict is Verdict.REFUTED
    assert judge(history(life(), held("page/vip"), *written)).finding.verdict is Verdict.PROVEN


@pytest.mark.parametrize(("back_s", "verdict"), [(20.0, Verdict.PROVEN), (22.0, Verdict.REFUTED)])
def test_a_page_that_was_long_under_way_when_it_was_struck_begins_an_outage_and_no_unsteadiness(
    back_s: float, verdict: Verdict
) -> None:
    """Asked a second and a half before the blow, on a busy machine, and cut off by it: later ones are as well."""
    asked = [
        probe.model_copy(update={"error": "OSError: HTTP 530", "ended_s": max(12.0, probe.ended_s)})
        if 10.5 <= probe.intended_s < back_s
        else probe.model_copy(update={"ended_s": probe.intended_s + (1.4 if probe.intended_s == 5.0 else 0.3)})
        for probe in probes("page/public", None)
    ]
    phases = [("steady", 0.0), ("fault", 11.9), *PHASES[2:]]
    layer = judge(history(asked, life(), budget(8.5, "page/public"), phases=phases)).layers[0]
    assert (layer.layer, layer.finding.verdict) == ("page/public", verdict), layer.finding.reason
    assert layer.restored_s == pytest.approx(back_s - 11.9, abs=0.2)


def test_flaps_count_until_the_last_of_them() -> None:
    flapping = [
        probe.model_copy(update={"error": "TimeoutError"}) if 12 <= probe.intended_s < 26 and probe.intended_s % 4 < 2
        else probe
        for probe in probes("vip", None)
    ]  # fmt: skip
    said = judge(history(life(), flapping, budget(4), writes("a"), there("a")))
    assert len(said.layers[0].outages) == 4
    assert said.finding.verdict is Verdict.REFUTED


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (there("a"), "1 of 2 writes (row) acknowledged and lost: b"),
        (there("a", "b", "b"), "made twice: b"),
        ([*there("a"), *there("b", digest="else")], "another content: b"),
    ],
)
def test_a_broken_promise_to_a_writer_is_refuted(found: list[Found], told: str) -> None:
    said = judge(history(life(), probes("vip"), budget(7), writes("a", "b"), found))
    assert said.finding.verdict is Verdict.REFUTED
    assert told in said.finding.reason


def test_a_write_that_was_not_acknowledged_may_be_there_or_not() -> None:
    refused = writes("c", "d", error="TimeoutError")
    said = judge(history(life(), probes("vip"), budget(7), [*writes("a"), *refused], there("a", "c")))
    assert said.finding.verdict is Verdict.PROVEN
    half = judge(history(life(), probes("vip"), [*writes("a"), *refused], there("a"), there("c", digest="half")))
    assert half.finding.verdict is Verdict.PROVEN


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([probes("vip")], "nothing was tested"),
        ([life(healed_s=None), probes("vip")], "never healed"),
        ([life()[:1], probes("vip")], "did not come about"),
        ([life()], "no layer was asked"),
        ([life(), probes("vip", None, until_s=3)], "too few"),
        ([life(), probes("vip", (2.0, 3.0))], "failed before"),
        ([life(), probes("sql"), budget(7)], "vip was never asked"),
        ([life(), probes("vip", None, until_s=11), budget(7)], "vip was asked nothing for 24.1 s from 11.9 s on"),
        ([life(), probes("vip", until_s=29), budget(7)], "vip was asked nothing for 7.1 s from 28.9 s on"),
        ([life(), probes_without("vip", 20, 25), budget(7)], "vip was asked nothing for 5.1 s from 19.9 s on"),
        ([life(), probes("vip"), writes("a", error="OSError")], "none could be lost"),
        ([life(), probes("vip"), [Aborted(reason="SSH was lost", at_s=39.0)]], "SSH was lost"),
    ],
)
def test_what_was_not_tested_is_not_judged(events: list[Iterable[Event]], reason: str) -> None:
    said = judge(history(*events))
    assert said.finding.verdict is Verdict.UNKNOWN
    assert reason in said.finding.reason


def test_a_drill_without_an_end_is_not_judged() -> None:
    assert judge(history(life(), probes("vip"), phases=PHASES[:3])).finding.verdict is Verdict.UNKNOWN


def test_why_a_drill_ended_before_it_was_steady_is_told_of_each_layer() -> None:
    aborted = [Aborted(reason="nobody wrote yet", at_s=3.0)]
    (layer,) = judge(history(probes("vip"), budget(1), aborted, phases=())).layers
    assert layer.finding.verdict is Verdict.UNKNOWN
    assert "the drill ended early: nobody wrote yet" in layer.finding.reason


def test_what_was_never_looked_for_is_not_lost() -> None:
    said = judge(history(life(), probes("vip"), writes("a", "b"), phases=PHASES[:-1]))
    assert said.writes[0].lost == ()
    assert said.writes[0].finding.verdict is Verdict.UNKNOWN
    assert said.finding.verdict is Verdict.UNKNOWN


def test_a_refutation_stands_however_the_drill_ended() -> None:
    aborted = [Aborted(reason="Ctrl-C", at_s=39.0)]
    assert judge(history(life(), probes("vip"), budget(1), aborted)).finding.verdict is Verdict.REFUTED


def test_a_drill_that_ended_early_proves_nothing_of_any_layer() -> None:
    aborted = [Aborted(reason="Ctrl-C", at_s=39.0)]
    said = judge(history(life(), probes("vip"), budget(7), aborted))
    assert said.layers[0].finding.verdict is Verdict.UNKNOWN
    assert "the drill ended early: Ctrl-C" in said.layers[0].finding.reason


@pytest.mark.parametrize(
    ("healed", "down", "why"),
    [
        ({"heal": 19.0, "healed": 30.0}, (12.0, 30.0), None),
        ({"heal": 19.0, "healed": 90.0}, (12.0, 38.0), "but it took 71 s to heal power cut of srvdbm01"),
        ({"heal": 19.0}, (12.0, 99.0), "but power cut of srvdbm01 was never healed"),
    ],
)
def test_what_is_owed_to_the_healer_refutes_nothing(
    healed: dict[str, float], down: tuple[float, float], why: str | None
) -> None:
    struck = life(healed_s=None)
    for step, at_s in healed.items():
        struck.append(struck[0].model_copy(update={"step": step, "at_s": at_s}))
    (vip,) = judge(history(struck, probes("vip", down), budget(7))).layers
    assert vip.finding.verdict is (Verdict.UNKNOWN if why else Verdict.REFUTED)
    assert (why or "vip was back after") in vip.finding.reason


def test_a_write_that_waits_is_an_outage_of_writing_while_reading_goes_on() -> None:
    """One writer, one row at a time: those whose time passes meanwhile come all at once afterwards."""
    header = HEADER.model_copy(update={"intervals_s": INTERVALS_S | {"write/row": 0.1}})
    rows = [
        Write(
            sort="row",
            name=str(number),
            digest="d",
            intended_s=number / 10,
            started_s=max(number / 10, 18.4 if number > 120 else 0),
            ended_s=max(number / 10 + 0.005, 18.4 if number >= 120 else 0),
        )
        for number in range(400)
    ]
    found = [Found(sort="row", name=row.name, digest="d") for row in rows]
    events = history(life(), probes("sql", None), rows, found, budget(7, "write/row")).events
    said = judge(History([header, *events[1:]]))
    writing = next(layer for layer in said.layers if layer.layer == "write/row")
    assert [outage.late for outage in writing.outages] == [False]
    assert writing.restored_s == pytest.approx(6.5, abs=0.2)
    assert said.finding.verdict is Verdict.PROVEN


def test_a_write_that_never_came_back_is_an_outage_to_its_end() -> None:
    header = HEADER.model_copy(update={"intervals_s": {"write/row": 0.1}})
    rows = [write_at(number / 10) for number in range(150)]
    hung = write_at(15.0).model_copy(update={"ended_s": 39.0, "error": "TimeoutError"})
    events = history(life(), [*rows, hung], budget(7, "write/row")).events
    said = judge(History([header, *events[1:]]))
    assert said.layers[0].restored_s == pytest.approx(40 - 11.9, abs=0.2)


def write_at(at_s: float) -> Write:
    return Write(sort="row", name=f"at {at_s}", digest="d", intended_s=at_s, started_s=at_s, ended_s=at_s + 0.005)


@pytest.mark.parametrize(
    ("at_s", "takes_data", "down", "unsaved"),
    [
        (8.0, True, None, False),  # long in a checkpoint
        (10.5, True, None, True),
        (10.5, False, None, False),  # a strike that leaves the data where they are
        (12.0, True, None, True),  # it strikes from 11.9 to 12.1 s
        (13.0, True, None, False),  # written after it, to somebody who holds it still
        (13.0, True, (14.0, 18.0), True),  # those that were left gave up only then
        (20.0, True, (14.0, 18.0), False),
    ],
)
def test_only_what_was_written_just_before_the_data_went_may_be_lost(
    at_s: float, takes_data: bool, down: tuple[float, float] | None, unsaved: bool
) -> None:
    header = HEADER.model_copy(update={"intervals_s": {"write/row": 0.1}, "loss_window_s": 2.0})
    struck = [fault.model_copy(update={"takes_data": takes_data}) for fault in life()]
    rows = [
        write_at(p.intended_s).model_copy(update={"error": p.error, "ended_s": p.ended_s})
        for p in probes("write/row", down)
    ]
    found = [Found(sort="row", name=row.name, digest="d") for row in rows if row.name != f"at {at_s}"]
    said = judge(History([header, *history(struck, rows, found).events[1:]]))
    assert bool(said.writes[0].unsaved) is unsaved
    assert bool(said.writes[0].lost) is not unsaved


def test_what_was_acknowledged_late_was_written_before() -> None:
    """A post is a row at first, and an answer when all that hangs on it is done: by then the data may be gone."""
    header = HEADER.model_copy(update={"loss_window_s": 2.0})
    struck = [fault.model_copy(update={"takes_data": True}) for fault in life()]
    posts = [write_at(11.5), write_at(15.0)]
    posts[0] = posts[0].model_copy(update={"ended_s": 18.0})
    said = judge(History([header, *history(struck, posts, probes("sql")).events[1:]]))
    assert (said.writes[0].unsaved, said.writes[0].lost) == (("at 11.5",), ("at 15.0",))


def test_a_file_outlives_what_the_database_loses() -> None:
    header = HEADER.model_copy(update={"loss_window_s": 2.0})
    struck = [fault.model_copy(update={"takes_data": True}) for fault in life()]
    lost = [write_at(10.5).model_copy(update={"sort": sort}) for sort in ("post", "upload")]
    said = judge(History([header, *history(struck, lost, probes("sql")).events[1:]]))
    assert [(one.sort, len(one.lost), len(one.unsaved)) for one in said.writes] == [("post", 0, 1), ("upload", 1, 0)]


def test_of_several_blows_only_that_which_takes_the_data_away_excuses_their_loss() -> None:
    """As of the arbitrator's trap: the management node, and then a data node."""
    header = HEADER.model_copy(update={"loss_window_s": 2.0})
    second = [f.model_copy(update={"takes_data": True, "name": "hang"}) for f in life(20.0)]
    lost = [write_at(12.0), write_at(19.0)]
    said = judge(History([header, *history(life(), second, lost, probes("sql")).events[1:]]))
    assert (said.writes[0].lost, said.writes[0].unsaved) == (("at 12.0",), ("at 19.0",))


def test_a_judge_that_fails_has_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("vip")

    monkeypatch.setattr("chaos.judgement.of_history", fail)
    said = judge(history(life(), probes("vip"), budget(7)))
    assert said.finding.verdict is Verdict.UNKNOWN
    assert "the judge itself failed: KeyError: 'vip'" in said.finding.reason


def test_an_outage_is_owed_to_the_innermost_layer_that_failed_with_it() -> None:
    layers = [probes(layer) for layer in ("public", "vip", "pod/a", "sql", "ndb")]
    said = judge(history(life(), *layers, probes("pod/b", None), probes("nfs", None)))
    owed = {layer.layer: layer.owed_to for layer in said.layers}
    assert owed == {"public": (("ndb",),), "vip": (("ndb",),), "pod/a": (("ndb",),), "sql": (("ndb",),),
                    "ndb": (("ndb",),), "pod/b": (), "nfs": ()}  # fmt: skip


@pytest.mark.parametrize(
    ("write", "below"),
    [("write/row", "sql"), ("write/post", "vip"), ("write/upload", "nfs")],
)
def test_a_write_is_owed_to_those_that_it_goes_through(write: str, below: str) -> None:
    header = HEADER.model_copy(update={"intervals_s": INTERVALS_S | {write: 0.1}})
    sort = write.removeprefix("write/")
    written = [
        write_at(p.intended_s).model_copy(update={"sort": sort, "error": p.error, "ended_s": p.ended_s})
        for p in probes(write)
    ]
    others = [probes(layer, DOWN if layer == below else None) for layer in ("vip", "sql", "nfs")]
    said = judge(History([header, *history(life(), written, *others).events[1:]]))
    assert {layer.layer: layer.owed_to for layer in said.layers if layer.outages} == dict.fromkeys(
        (write, below), ((below,),)
    )


def test_a_page_is_owed_to_the_database_that_an_address_does_without() -> None:
    layers = [probes(layer) for layer in ("page/public", "page/vip", "sql")]
    said = judge(history(life(), *layers, probes("vip", None), probes("public", None)))
    assert {layer.layer: layer.owed_to for layer in said.layers if layer.outages} == dict.fromkeys(
        ("page/public", "page/vip", "sql"), (("sql",),)
    )


@pytest.mark.parametrize(
    ("told", "detected_s"),
    [
        ([("database", 5.0, "whole"), ("database", 17.9, "away: srvdbm01")], 6.0),
        ([("machines", 5.0, "whole"), ("machines", 12.9, "away: srvdbm01")], None),  # the hypervisor's own word
        ([("site", 5.0, "whole"), ("site", 12.9, "no answer: OSError"), ("site", 13.9, "HTTP 500")], None),
        ([("nodes", 5.0, "whole"), ("nodes", 12.9, "no answer: ApiException"), ("nodes", 20.0, "whole")], None),
        ([("announcer", 13.0, "srvk8s-worker02")], None),  # told for the first time, and as it was before
    ],
)
def test_detection_is_the_first_change_that_the_targets_own_parts_tell_of(
    told: list[tuple[str, float, str]], detected_s: float | None
) -> None:
    seen = [Seen(subject=subject, state=state, at_s=at_s) for subject, at_s, state in told]
    assert judge(history(life(), probes("vip"), seen)).detected_s == (detected_s and pytest.approx(detected_s))


def test_a_history_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    whole = history(life(), probes("vip"), budget(7), writes("a"), there("a"))
    own, prober = Recorder.into(tmp_path / FILE), Recorder.into(tmp_path / "probes.jsonl")
    for event in whole.events:
        (prober if isinstance(event, Probe) else own).record(event, durable=isinstance(event, Write))
    own.close()
    prober.close()
    with (tmp_path / "probes.jsonl").open("a") as cut_off:
        cut_off.write('{"kind":"probe","layer":"vi')
    assert judge(History.read(tmp_path)) == judge(whole)


@pytest.mark.parametrize(("seconds", "code", "told"), [(7, 0, "proven"), (4, 1, "refuted: vip was back after 6.1 s")])
def test_a_saved_history_is_judged_again_by_people(tmp_path: Path, seconds: float, code: int, told: str) -> None:
    recorder = Recorder.into(tmp_path / FILE)
    for event in history(life(), probes("vip"), probes("sql"), budget(seconds), writes("a"), there("a")).events:
        recorder.record(event)
    recorder.close()
    done = CliRunner().invoke(app, ["judge", str(tmp_path)])
    assert done.exit_code == code, done.output
    assert told in done.output
    assert "power cut of srvdbm01 at 11.9 s, healed at 30.0 s" in done.output


def test_a_folder_without_history_is_one_clear_error(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["judge", str(tmp_path)]).exit_code == 2


def test_a_history_is_never_written_over(tmp_path: Path) -> None:
    Recorder.into(tmp_path / FILE).close()
    with pytest.raises(HistoryError, match="choose another folder"):
        Recorder.into(tmp_path / FILE)


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "expected one header"), ('{"kind":"probe"}\n', "line 1 is no event"), ("x\ny\n", "line 1")],
)
def test_what_is_no_history_is_told_by_file_and_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(HistoryError, match=told):
        History.read(tmp_path)


def test_a_full_disk_is_told_and_keeps_what_was_written() -> None:
    with suppress(OSError), Path("/dev/full").open("w") as full, pytest.raises(HistoryError, match="No space left"):
        Recorder(full).record(HEADER)


def test_outages_of_no_length_are_not_made_up() -> None:
    outage = Outage("vip", 1.0, 1.5, 0.1, total=True, asked=5, failed=5, errors=())
    assert outage.length_s(9.0) == pytest.approx(0.5)
