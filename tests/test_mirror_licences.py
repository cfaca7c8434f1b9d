"""The licences of what the mirror redistributes lie beside it: every recipe built with programs that only pretend."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.cache import Recipe
from lab.mirror import binaries, images, mysql, template, wordpress
from lab.mirror.bootstrap import keep_licences
from lab.mirror.content import assembly, recipes
from lab.mirror.manifests import MANIFESTS

# Made here of what is ours, or of the results of other recipes, whose licences are there already.
OWN = {"signing-key", "charts", "content", "images", "mysql"}
OWN |= {"packages", "mysql-packages", "helm-packages", "cloudflare-packages"}
# Single files of modules whose programs are built as well (see below).
OF_PROGRAMS = {"manifests"}
OTHERS = [recipe for recipe in recipes() if recipe.name not in OWN | OF_PROGRAMS]


def silent(_: str) -> None:
    """Hear nothing."""


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Compilers, archives and Debian itself, which leave what a recipe needs to go on; gives a module's folder."""
    module = tmp_path / "module"
    module.mkdir()
    for name in ("LICENSE", "NOTICE.txt", "main.go"):
        (module / name).write_text(name)

    def run(command: Sequence[str | Path], **_: Any) -> str:
        match [str(word) for word in command]:
            case ["go", "list", *_]:
                return f"example.org/library\t{module}\nhaproof/own\t{module}\n\t\n"
            case ["go", "build", *words]:
                output(words[words.index("-o") + 1])
            case ["cmake", *words]:
                output(f"{words[words.index('-B') + 1]}/build.ninja")
            case ["strip", "-o", path, _] | ["mke2fs", *_, path, _]:
                output(path)
            case ["tar", *_, path]:
                output(f"{path}/LICENSE")
            case ["du", *_]:
                return "2048\t."
        return ""

    def output(path: str) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("made")

    def debian(root: Path, packages: Sequence[str], **_: Any) -> None:
        for package in packages:
            output(f"{root}/usr/share/doc/{package}/copyright")
            with gzip.open(root / f"usr/share/doc/{package}/changelog.Debian.gz", "wt") as changelog:
                changelog.write("mysql (9.7.4-1) unstable; urgency=low\n")
        for folder in (
            "usr/bin",
            "usr/sbin",
            "etc/apt",
            *(str(Path(path).parent) for path, _ in wordpress.FILES.values()),
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)

    for place in (binaries, images, mysql, template, wordpress):
        monkeypatch.setattr(place, "run", run)
        if hasattr(place, "bootstrap"):
            monkeypatch.setattr(place, "bootstrap", debian)
    return module


@pytest.mark.parametrize("recipe", OTHERS, ids=lambda recipe: recipe.name)
def test_what_others_wrote_has_its_licence_beside_it(pretended: Path, tmp_path: Path, recipe: Recipe) -> None:
    made = tmp_path / "made"
    made.mkdir()
    recipe.build(made, {need.name: tmp_path for need in recipe.needs}, silent)
    found = [path for path in made.glob("**/licences/*/*") if path.is_file() and path.stat().st_size]
    assert found, f"{recipe.name} keeps no licence of what it redistributes"


def test_licences_are_those_of_every_module_but_ours(pretended: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    binaries.HELM.build(made, {}, silent)
    kept = {str(path.relative_to(made / "licences")) for path in (made / "licences").rglob("*") if path.is_file()}
    assert kept == {"example.org_library/LICENSE", "example.org_library/NOTICE.txt"}


def test_a_packages_licence_is_kept_once_also_where_packages_share_it(tmp_path: Path) -> None:
    doc = tmp_path / "root/usr/share/doc"
    for package in ("libc6", "zlib1g"):
        (doc / package).mkdir(parents=True)
        (doc / package / "copyright").write_text(package)
    (doc / "libc-bin").mkdir()
    (doc / "libc-bin/copyright").symlink_to("../libc6/copyright")
    keep_licences(tmp_path / "root", tmp_path / "licences")
    assert sorted(path.read_text() for path in (tmp_path / "licences").rglob("copyright")) == ["libc6", "zlib1g"]


def test_manifests_are_of_modules_whose_programs_are_built() -> None:
    required = "\n".join(path.read_text() for path in binaries.MODULES.glob("*/go.mod"))
    for module, _ in MANIFESTS.values():
        name, _, version = module.partition("@")
        assert f"{name} {version}" in required


def test_all_licences_are_served_by_the_part_that_they_belong_to(tmp_path: Path) -> None:
    made = {}
    for recipe in recipes()[:-1]:
        made[recipe.name] = tmp_path / recipe.name
        (made[recipe.name] / "licences/any").mkdir(parents=True)
    (tmp_path / "content").mkdir()
    assembly("build").build(tmp_path / "content", made, silent)
    assert {path.name for path in (tmp_path / "content/licences").iterdir()} == made.keys()
