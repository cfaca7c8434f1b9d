"""What is shown while a drill runs."""

from chaos.glance import Glance
from chaos.history import Probe


def probe(layer: str, at_s: float, error: str = "") -> Probe:
    return Probe(layer=layer, intended_s=at_s, started_s=at_s, ended_s=at_s, error=error)


def test_layers_that_fail_are_named_and_the_others_counted() -> None:
    glance = Glance()
    glance.hear([probe("vip", 1), probe("sql", 1)])
    assert glance.told(2) == "2 layers answer"
    glance.hear([probe("vip", 8, "x"), probe("sql", 8, "x"), probe("sql", 8.5), probe("sql", 9)])
    assert glance.told(10) == "sql fails 1 of 3; vip away for 9 s"


def test_what_is_long_past_is_forgotten() -> None:
    glance = Glance()
    glance.hear([probe("vip", 1, "x"), probe("vip", 9)])
    assert glance.told(10) == "1 layers answer"
