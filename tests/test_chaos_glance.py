"""What is shown while a drill runs."""

from pathlib import Path

from chaos.glance import Glance
from chaos.history import Phase, Probe
from chaos.tail import Tail


def probe(layer: str, at_s: float, error: str = "") -> Probe:
    return Probe(layer=layer, intended_s=at_s, started_s=at_s, ended_s=at_s, error=error)


def test_layers_that_fail_are_named_and_the_others_counted() -> None:
    glance = Glance()
    glance.hear([probe("vip", 1), probe("sql", 1)])
    assert glance.told(2) == "beginning: 2 layers answer"
    glance.hear([Phase(name="fault", at_s=7)])
    glance.hear([probe("vip", 8, "x"), probe("sql", 8, "x"), probe("sql", 8.5), probe("sql", 9)])
    assert glance.told(10) == "fault: sql fails 1 of 3; vip away for 9 s"


def test_what_is_long_past_is_forgotten() -> None:
    glance = Glance()
    glance.hear([probe("vip", 1, "x"), probe("vip", 9)])
    assert glance.told(10) == "beginning: 1 layers answer"


def test_a_line_that_is_still_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    tail, line = Tail(tmp_path / "probes.jsonl"), probe("vip", 1, "ü").model_dump_json() + "\n"
    assert tail.read() == []
    with tail.file.open("w") as file:
        file.write(line + line[:20])
        file.flush()
        assert len(tail.read()) == 1
        file.write(line[20:])
    assert len(tail.read()) == 1
