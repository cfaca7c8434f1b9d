"""What the README and docs/ say is so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def help_of(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "200", "PATH": "/usr/bin:/bin", "HOME": "/tmp"},
    )
    return done.stdout


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"`?\bmake ([a-z]+)\b(?=[`\s])", page.read_text())}
    named -= {"anew"}
    assert {"certify", "test"} <= named
    assert named <= targets


def test_every_option_of_pytest_that_is_named_exists() -> None:
    named = set(re.findall(r"pytest[^`\n|]*?(--[a-z-]+)", README))
    assert {"--env", "--plan"} <= named
    shown = help_of("pytest", "--help")
    assert [option for option in named if option not in shown] == []


def test_every_command_of_the_lab_that_is_named_exists() -> None:
    listed = re.search(r"the lab for people: `([^`]+)`", README)
    assert listed
    shown = help_of("lab", "--help")
    assert [name for name in listed[1].split() if not re.search(rf"\b{name}\b", shown)] == []


def test_every_command_of_drills_that_is_named_exists() -> None:
    shown = help_of("chaos", "--help")
    assert "python -m chaos run DRILL" in README
    assert [name for name in ("run", "list", "heal", "judge") if not re.search(rf"\b{name}\b", shown)] == []


@pytest.mark.parametrize("module", ["certificate", "load"])
def test_every_command_of_a_module_that_is_named_exists(module: str) -> None:
    told = "\n".join(page.read_text() for page in PAGES)
    named = {tuple(found) for found in re.findall(rf"python -m {module} ([a-z]+)([^\n`|#]*)", told)}
    assert named
    for command, rest in named:
        shown = help_of(module, command, "--help")
        assert [option for option in re.findall(r"--[a-z-]+", rest) if option not in shown] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


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
