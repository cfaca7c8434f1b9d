"""What the README and docs/ say is so."""

import configparser
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted(page for page in ROOT.rglob("*.md") if not {".venv", "out"} & set(page.relative_to(ROOT).parts))
COMMAND = re.compile(r"(?:^|[\s/])(?:python -m (?P<module>[a-z][\w.]*)|(?P<tool>pytest|make))(?P<rest>(?: .*)?)$")
MODULES = ("chaos", "load", "certificate", "lab")


@dataclass(frozen=True)
class Told:
    """A command that a page tells: the module of `python -m`, `pytest` or `make`; its words, and options beside it."""

    name: str
    words: tuple[str, ...]
    hints: tuple[str, ...] = ()


def commands(text: str) -> Iterator[Told]:
    """Every command in a page's code, with the options that its line's comment names. Pure."""
    fenced = re.findall(r"^ *```.*?\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in fenced for line in block.splitlines()]
    outside = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    for line in [*lines, *re.findall(r"`([^`]+)`", outside)]:
        code, _, comment = line.replace("\n", " ").partition(" #")
        for option in re.findall(r"\bpytest (--[a-z-]+)", comment):
            yield Told("pytest", (option,))
        if found := COMMAND.search(code.strip()):
            yield Told(
                found["module"] or found["tool"],
                words_of(found["rest"].replace("\\|", "|")),
                tuple(re.findall(r"(?<!pytest )--[a-z-]+", comment)),
            )


def words_of(rest: str) -> tuple[str, ...]:
    """A command's words; one that stands in another's quotes ends with them. Pure."""
    try:
        return tuple(shlex.split(rest))
    except ValueError:
        return tuple(shlex.split(rest.partition('"')[0]))


def program(module: str) -> Any:
    """The command line of `python -m MODULE`, as typer's own copy of click has it."""
    app = importlib.import_module(f"{module}.__main__").app
    assert isinstance(app, typer.Typer)
    return typer.main.get_command(app)


def complaints(told: Told, top: Any) -> Iterator[str]:
    """Words of a command that its program does not know. Pure."""
    command = top
    words = list(told.words)
    if words and not words[0].startswith("-"):
        if words[0] not in top.commands:
            yield f"{told.name} has no command {words[0]}"
            return
        command = top.commands[words[0]]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for option in [*(word.partition("=")[0] for word in words if word.startswith("--")), *told.hints]:
        if option not in {*known, "--help"}:
            yield f"{told.name} {command.name} has no option {option}"


TOLD = [(page.name, told) for page in PAGES for told in commands(page.read_text())]


def of(*names: str) -> list[tuple[str, Told]]:
    """The commands of these names, with their pages; there is at least one."""
    found = [(page, told) for page, told in TOLD if told.name in names]
    assert found
    return found


def test_commands_of_python_are_modules_of_ours() -> None:
    named = {told.name for _, told in TOLD} - {"make", "pytest"}
    assert named >= set(MODULES)
    assert [module for module in named if importlib.util.find_spec(module) is None] == []


@pytest.mark.parametrize("module", MODULES)
def test_every_command_of_a_module_exists_with_its_options(module: str) -> None:
    top = program(module)
    assert [f"{page}: {one}" for page, told in of(module) for one in complaints(told, top)] == []


def test_every_option_of_pytest_and_every_marker_exists() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    known = set(re.findall(r"(?<![\w-])--?[a-zA-Z][a-z-]*", done.stdout))
    ini = configparser.ConfigParser()
    ini.read(ROOT / "pytest.ini")
    markers = set(re.findall(r"^(\w+):", ini["pytest"]["markers"], re.MULTILINE))
    for page, told in of("pytest"):
        options = [word.partition("=")[0] for word in (*told.words, *told.hints) if word.startswith("-")]
        assert [option for option in options if option not in known] == [], page
        chosen = told.words[told.words.index("-m") + 1] if "-m" in told.words else ""
        assert set(re.findall(r"\w+", chosen)) - {"and", "or", "not"} <= markers, page


def test_every_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for _, told in of("make") for word in told.words if re.fullmatch(r"[a-z-]+", word)}
    assert {"certify", "test", "drills", "ruler", "faults", "bench"} <= named
    assert named <= targets


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("`python -m load sprint`", "load has no command sprint"),
        ("`python -m load run --speed 3`", "load run has no option --speed"),
        ("```\npython -m load run   # or with --fast\n```", "load run has no option --fast"),
        ("| `python -m load run \\| cat --x` | a row |", "load run has no option --x"),
    ],
)
def test_a_command_that_is_not_is_found(text: str, told: str) -> None:
    assert [one for command in commands(text) for one in complaints(command, program("load"))] == [told]


def test_prose_is_no_command() -> None:
    assert list(commands("make anew what pytest tells; `make` alone; python -m nothing")) == [Told("make", ())]


def test_every_command_that_the_readme_lists_by_name_exists() -> None:
    people = re.search(r"the lab for people: `([^`]+)`", README)
    drills = re.search(r"break the target in use, heal, judge \(([^)]+)\)", README)
    kept = re.search(r"is it what was signed\? \(([^)]+)\)", README)
    for module, listed in {"lab": people, "chaos": drills, "certificate": kept}.items():
        assert listed, module
        named = {words.split()[0] for words in re.findall(r"`([^`]+)`", listed[1]) or listed[1].split()}
        assert named <= set(program(module).commands), module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Files, and headings within pages."""
    text = page.read_text()
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
        file = page.parent / target if target else page
        assert file.exists(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE) if heading else []
        slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}
        assert not heading or heading in slugs, f"{target}#{heading}"


def test_every_folder_says_what_it_is_for_and_is_on_the_map() -> None:
    map_ = (ROOT / "docs/architecture.md").read_text()
    for folder in ("environments", "provisioning", "steps", "certificate", "lab", "chaos", "load"):
        first = (ROOT / folder / "__init__.py").read_text().splitlines()[0]
        assert first.startswith('"""'), folder
        assert f"`{folder}/`" in map_, folder


def test_modules_on_the_map_exist() -> None:
    rows = re.findall(
        r"^\| `(provisioning|environments|lab|chaos|load|certificate)/` \|[^|]*\|([^|]*)\|",
        (ROOT / "docs/architecture.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) == 6
    for folder, nouns in rows:
        for noun in re.findall(r"`([a-z_]+)/?`", nouns):
            places = [ROOT / folder / noun, ROOT / folder / f"{noun}.py", ROOT / folder / "mirror" / f"{noun}.py"]
            assert any(place.exists() for place in places), f"{folder}/{noun}"


def test_no_file_names_a_package_registry() -> None:
    """The machine says where packages come from; a name in here would be a second, silent source."""
    hosts = [r"deb\.debian\." + "org", r"pypi\." + "org", r"proxy\.golang\." + "org", r"registry\.npmjs\." + "org"]
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    found = [name for name in listed if re.search("|".join(hosts), (ROOT / name).read_text(errors="replace"))]
    assert found == []
