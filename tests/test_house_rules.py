"""The house rules hold, and each finds what breaks it: a rule that cannot fail is none."""

import ast
import configparser
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest
from pytest_bdd.parser import ScenarioTemplate
from pytest_bdd.parsers import parse, string
from pytest_bdd.steps import StepFunctionContext, step_function_context_registry

from certificate.promises import evidence, read, tags_of, templates
from tests import house_rules
from tests.house_rules import Rule

ROOT = Path(__file__).parent.parent
FEATURES = ROOT / "features"
SCENARIOS = templates(FEATURES)
STEPS = [step for scenario in SCENARIOS for step in scenario.steps]
PROMISES = read(FEATURES / "promises.toml")
LAYERS = set(re.findall(r"^ *(\w+): layer - ", (ROOT / "pytest.ini").read_text(), re.MULTILINE))
IDS = [*(f"P{number}" for number in range(1, 14)), *(f"M{number}" for number in range(1, 5))]
OURS = ("environments", "provisioning", "steps", "chaos", "load", "certificate", "lab")
# Waits that are no waiting for something: `poll` itself, and visitors, whose times are what a load test consists of.
PACED = ("provisioning/poll.py", "load/generator.py", "load/alarm.py")
RULES: list[tuple[Rule, Sequence[str]]] = [
    (house_rules.asynchronous, ("steps",)),
    (house_rules.sleeping, ("steps", "chaos", "provisioning", "load")),
    (house_rules.knowing_the_lab, tuple(folder for folder in OURS if folder != "lab")),
    (house_rules.swallowing, OURS),
    (house_rules.keeping_state, ("steps",)),
    (house_rules.undocumented, OURS),
    (house_rules.hiding_errors, OURS),
    (house_rules.without_unit, OURS),
]


def modules(*folders: str) -> dict[str, ast.Module]:
    """The syntax trees of all modules of ours in `folders`, by path."""
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text()) for file in files}


def complaints(rule: Rule, source: str) -> list[str]:
    return list(rule(ast.parse(dedent(source))))


# Of every module


@pytest.mark.parametrize(("rule", "folders"), RULES, ids=lambda value: getattr(value, "__name__", ""))
def test_nothing_of_ours_breaks_the_rule(rule: Rule, folders: Sequence[str]) -> None:
    looked_at = modules(*folders)
    assert len(looked_at) >= 10
    exempt = PACED if rule is house_rules.sleeping else ()
    assert [f"{path}:{told}" for path, tree in looked_at.items() if path not in exempt for told in rule(tree)] == []


BROKEN: list[tuple[Rule, str, str]] = [
    (house_rules.asynchronous, "async def holds(): assert False", "1: holds is async"),
    (house_rules.sleeping, "import time\ntime.sleep(1)", "2: sleeps"),
    (house_rules.sleeping, "from time import sleep as rest\nrest(1)", "1: sleeps"),
    (house_rules.sleeping, "import gevent\ngevent.sleep(0)", "2: sleeps"),
    (house_rules.knowing_the_lab, "from lab.paths import Paths", "1: imports the lab"),
    (house_rules.knowing_the_lab, "def f():\n    import lab", "2: imports the lab"),
    (house_rules.knowing_the_lab, 'if environment.name == "lab": pass', "1: asks whether this is the lab"),
    (house_rules.knowing_the_lab, 'if provider in ("lab", "other"): pass', "1: asks whether this is the lab"),
    (house_rules.knowing_the_lab, 'match name:\n    case "lab": pass', "2: asks whether this is the lab"),
    (house_rules.swallowing, "try: f()\nexcept: raise", "2: a bare except"),
    (house_rules.swallowing, "try: f()\nexcept Exception: pass", "2: passes over every error"),
    (house_rules.swallowing, "try: f()\nexcept (OSError, BaseException): ...", "2: passes over every error"),
    (house_rules.swallowing, "with suppress(Exception): f()", "1: passes over every error"),
    (house_rules.keeping_state, "seen = []", "1: seen can change"),
    (house_rules.keeping_state, "SEEN: dict[str, int] = defaultdict(int)", "1: SEEN can change"),
    (house_rules.keeping_state, "SEEN = {}\ndef f(x): SEEN[x] = 1", "2: f changes the module's SEEN"),
    (house_rules.keeping_state, "SEEN = [1]\ndef f(x): SEEN.append(x)", "2: f changes the module's SEEN"),
    (house_rules.keeping_state, "last = 0\ndef f():\n    global last\n    last = 1", "3: f changes the global last"),
    (house_rules.undocumented, "x = 1", "1: the module says nothing of itself"),
    (house_rules.undocumented, '"""A."""\ndef f(): pass', "2: f says nothing of itself"),
    (
        house_rules.undocumented,
        '"""A."""\nclass A:\n    """A."""\n    def f(self): pass',
        "4: f says nothing of itself",
    ),
    (
        house_rules.hiding_errors,
        'def f():\n    """F."""\n    raise OSError("x")',
        "f does not say that it raises OSError",
    ),
    (
        house_rules.hiding_errors,
        'class A:\n    """A."""\n    def f(self):\n        """F."""\n        raise OSError',
        "f does not say that it raises OSError",
    ),
    (house_rules.without_unit, 'def f(timeout: float):\n    """F."""', "1: timeout of f is a number of what?"),
    (house_rules.without_unit, 'def latency() -> float:\n    """F."""', "latency of latency is a number"),
    (house_rules.without_unit, "class A:\n    size_max: int = 3", "2: size_max of A is a number of what?"),
    (house_rules.without_unit, "START_TIMEOUT = 30", "1: START_TIMEOUT is a number of what?"),
]


@pytest.mark.parametrize(("rule", "source", "told"), BROKEN)
def test_what_breaks_a_rule_is_found(rule: Rule, source: str, told: str) -> None:
    found = complaints(rule, source)
    assert len(found) == 1
    assert told in found[0]


def test_every_rule_is_seen_to_find_something() -> None:
    assert {rule for rule, _, _ in BROKEN} == {rule for rule, _ in RULES}


KEPT: list[tuple[Rule, str]] = [
    (house_rules.knowing_the_lab, 'from labels import x\nname = "lab"\nassert name != "collab"'),
    (house_rules.swallowing, "try: f()\nexcept OSError: pass\nexcept Exception as error: raise A from error"),
    (house_rules.keeping_state, 'NAMES = {"a": 1}\ndef f():\n    found = []\n    found.append(NAMES["a"])'),
    (house_rules.hiding_errors, 'class A:\n    """Every method raises X."""\n    def f(self):\n        raise X'),
    (house_rules.hiding_errors, 'def f():\n    """F; raises OSError."""\n    raise OSError'),
    (house_rules.hiding_errors, 'def f():\n    """F."""\n    try: raise OSError\n    except OSError: return'),
    (
        house_rules.hiding_errors,
        'class A:\n    """A."""\n    def f(self):\n        """Raises X."""\nclass B(A):\n    def f(self): raise X',
    ),
    (
        house_rules.without_unit,
        'class A:\n    """`size` in bytes."""\n    size: int\n    timeout_s: float\n    age: str',
    ),
]


@pytest.mark.parametrize(("rule", "source"), KEPT)
def test_what_keeps_a_rule_is_left_in_peace(rule: Rule, source: str) -> None:
    assert complaints(rule, source) == []


# Of steps


def step_definitions() -> list[StepFunctionContext]:
    return [
        context
        for context in step_function_context_registry.values()
        if context.step_func.__module__.startswith("steps.")
    ]


def test_every_step_is_defined_once() -> None:
    assert house_rules.undefined(STEPS, step_definitions()) == []


def test_every_step_definition_is_used() -> None:
    assert house_rules.unused(STEPS, step_definitions()) == []


def test_undefined_doubled_and_unused_steps_are_found() -> None:
    def definition(kind: str, text: str) -> Any:
        return SimpleNamespace(type=kind, parser=parse(text))

    steps = [
        SimpleNamespace(type="then", name="3 replicas are ready"),
        SimpleNamespace(type="when", name="it is asked"),
    ]
    defined = [definition("then", "{count:d} replicas are ready"), definition("given", "it is asked")]
    assert house_rules.undefined(steps, defined) == ["0 definitions fit “when it is asked”"]
    assert house_rules.unused(steps, defined) == ["“given it is asked” is no scenario's"]
    doubled = [*defined, definition("when", "it is asked"), SimpleNamespace(type="when", parser=string("it is asked"))]
    assert house_rules.undefined(steps, doubled) == ["2 definitions fit “when it is asked”"]


def test_every_then_comes_to_a_verdict() -> None:
    steps = {path.removesuffix(".py").replace("/", "."): tree for path, tree in modules("steps").items()}
    assert house_rules.unobserving(steps) == []


@pytest.mark.parametrize(
    ("body", "silent"),
    [
        ("@then('x')\ndef f(): pass", ["steps.a.f"]),
        ("@then('x')\ndef f(n): return n == 3", ["steps.a.f"]),
        ("@then('x')\ndef f(n): g(n)\ndef g(n): print(n)", ["steps.a.f"]),
        ("@then('x')\ndef f(n): raise OSError", ["steps.a.f"]),
        ("@then('x')\ndef f(n): assert n is not None", ["steps.a.f"]),
        ("@when('x')\ndef f(n): return n", ["steps.a.f"]),
        ("@then('x')\ndef f(n): assert n", []),
        ("@then('x')\ndef f(n): raise NotExercised('no NFS')", []),
        ("@then('x')\ndef f(n): g(n)\ndef g(n): h(n)\ndef h(n):\n    assert n", []),
        ("from steps.b import none_of\n@then('x')\ndef f(n): none_of(n)", []),
        ("from steps import b\n@then('x')\ndef f(n): b.none_of(n)", []),
        ("@when('x')\ndef f(n): return n.ask()", []),
    ],
)
def test_a_step_that_observes_nothing_is_found(body: str, silent: list[str]) -> None:
    helper = ast.parse("def none_of(told):\n    if told: raise AssertionError(told)")
    assert house_rules.unobserving({"steps.a": ast.parse(body), "steps.b": helper}) == silent


# Of features


def test_the_promises_are_those_of_the_document() -> None:
    assert [promise.id for promise in PROMISES] == IDS


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_scenario_is_well_formed(scenario: ScenarioTemplate) -> None:
    assert list(house_rules.ill_formed(scenario, IDS, LAYERS)) == []


@pytest.mark.parametrize(
    ("tags", "steps", "told"),
    [
        ("@P1 @site @acceptance", 1, []),
        ("@site @acceptance", 1, ["is no evidence for any promise"]),
        ("@P1 @P2 @site @acceptance", 1, ["is evidence for P2, which its feature does not open with"]),
        ("@P1 @acceptance", 1, ["has 0 tags of a layer, expected one"]),
        ("@P1 @site @acceptance @drill", 1, ["has 2 tags of a manner, expected one"]),
        ("@P1 @site @acceptance", 6, ["has 6 steps after 0 of its background"]),
    ],
)
def test_an_ill_formed_scenario_is_found(tmp_path: Path, tags: str, steps: int, told: list[str]) -> None:
    lines = [f"    Then it holds {number}" for number in range(steps)]
    text = "\n".join(["Feature: One", "  P1: it holds.", f"  {tags}", "  Scenario: A", *lines])
    (tmp_path / "one.feature").write_text(text)
    (scenario,) = templates(tmp_path)
    assert list(house_rules.ill_formed(scenario, ("P1", "P2"), ("site", "edge"))) == told


def test_a_promise_without_scenario_is_not_built() -> None:
    tagged = evidence(PROMISES, SCENARIOS)
    assert [promise.id for promise in PROMISES if promise.built and not tagged[promise.id]] == []


def test_every_tag_is_a_registered_marker() -> None:
    ini = configparser.ConfigParser()
    ini.read(ROOT / "pytest.ini")
    markers = {line.partition(":")[0] for line in ini["pytest"]["markers"].split("\n") if line}
    assert {tag for scenario in SCENARIOS for tag in tags_of(scenario)} <= markers
    assert set(IDS) <= markers


def test_no_feature_repeats_a_value_of_an_environment() -> None:
    files = sorted((ROOT / "environments").glob("*.toml"))
    values = set().union(*(house_rules.particulars(tomllib.loads(file.read_text())) for file in files))
    assert {"172.31.0.100", "first-pool", "srvk8s-master01", "www.example.org", "9000"} <= values
    told = {file.name: house_rules.retyped(file.read_text(), values) for file in FEATURES.rglob("*.feature")}
    assert {name: lines for name, lines in told.items() if lines} == {}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("Then the site answers at 172.31.0.100.", ["1: 172.31.0.100 is the environment's"]),
        ("When srvdbm01 is stopped", ["1: srvdbm01 is the environment's"]),
        ("Then VM 111 runs", ["1: 111 is the environment's"]),
        ("Then the site answers at 172.31.0.1000 or srvdbm01x or 1112", []),
        ("Then “172.31.0.100” of the document answers", []),
    ],
)
def test_a_retyped_value_is_found(line: str, told: list[str]) -> None:
    assert house_rules.retyped(line, ["172.31.0.100", "srvdbm01", "111"]) == told
