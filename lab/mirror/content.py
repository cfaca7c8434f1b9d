"""All that the mirror serves, built where it is not there yet; independent parts side by side."""

import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from lab.cache import BuildError, Cache, Progress, Recipe, builds, key
from lab.mirror import binaries
from lab.mirror.cloudflared import CLOUDFLARED
from lab.mirror.debs import KUBERNETES
from lab.mirror.helm import HELM, Charts
from lab.mirror.images import Images
from lab.mirror.manifests import Manifests
from lab.mirror.mysql import MYSQL
from lab.mirror.template import Template
from lab.mirror.upstream import FetchedImages, FetchedLicences, FetchedManifests, FetchedPackages
from lab.paths import Paths

ADDRESS = "172.31.0.1"  # the hypervisor's own in the document's cluster network
URL = f"http://{ADDRESS}"
SOURCES = ("build", "upstream")


@dataclass(frozen=True)
class Assembly:
    """One folder that leads to all parts: `packages/PATH manifests template registry licences/NAME`."""

    needs: Sequence[Recipe]
    name: str = "content"

    def inputs(self) -> bytes:
        """The parts decide; how they are laid out is this."""
        return b"packages/PATH manifests template registry licences"

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        """Link the parts, and the licences of everything that went into them."""
        for name in ("manifests", "template"):
            (into / name).symlink_to(made[name])
        (into / "packages").mkdir()
        for name in ("packages", MYSQL.name, HELM.name, Charts.name, CLOUDFLARED.name):
            for top in made[name].iterdir():
                if top.name != "licences":
                    (into / "packages" / top.name).symlink_to(top)
        (into / "registry").symlink_to(made["images"] / "registry")
        (into / "licences").mkdir()
        for name, path in made.items():
            if (path / "licences").is_dir():
                (into / "licences" / name).symlink_to(path / "licences")


def assembly(source: str) -> Assembly:
    """What is served, by where it comes from (see `SOURCES`); raises BuildError for anything else."""
    if source == "build":
        return Assembly((Template(URL), Images(), KUBERNETES, MYSQL, HELM, Charts(), CLOUDFLARED, Manifests()))
    if source == "upstream":
        fetched = (FetchedImages(), FetchedPackages(), FetchedManifests(), FetchedLicences())
        return Assembly((Template(URL), *fetched, MYSQL, HELM, Charts(), CLOUDFLARED))
    raise BuildError(f"the lab has no source {source!r}; expected one of: {', '.join(SOURCES)}")


def recipes(source: str = "build") -> list[Recipe]:
    """Every recipe, needs before what needs them, each once; the last leads to all of them."""
    found: dict[str, Recipe] = {}

    def visit(recipe: Recipe) -> None:
        for need in recipe.needs:
            visit(need)
        found.setdefault(recipe.name, recipe)

    visit(assembly(source))
    return list(found.values())


def is_built(paths: Paths | None = None, source: str = "build") -> bool:
    """Whether everything is in the cache already; not so where this machine cannot even tell what is needed."""
    try:
        return _is_whole(builds(paths or Paths.default()).folder / key(assembly(source)))
    except BuildError:
        return False


def _is_whole(assembled: Path) -> bool:
    return assembled.is_dir() and all(path.exists() for path in assembled.rglob("*"))


def build(progress: Progress, paths: Paths | None = None, source: str = "build") -> Path:
    """Make what is missing and return the folder that leads to all of it (see `Assembly`); raises BuildError.

    Go's own builds use every core, so they follow one another; what waits for the network runs beside them.
    """
    cache, ordered = builds(paths or Paths.default()), recipes(source)
    started = time.monotonic()

    def told(line: str) -> None:
        progress(f"[{time.monotonic() - started:5.0f} s] {line}")

    assembled = cache.folder / key(ordered[-1])
    with cache.building():
        if assembled.is_dir() and not _is_whole(assembled):
            shutil.rmtree(assembled)  # someone removed a part by hand
        return assembled if assembled.is_dir() else build_all(cache, ordered, told)


class NotBegun(BuildError):
    """A part was left alone because another one had failed, or the run was stopped."""


def build_all(cache: Cache, ordered: Sequence[Recipe], progress: Progress) -> Path:
    """Make `ordered`, needs first, and return the last one's folder; that one sees all before it.

    The first failure or a Ctrl-C ends it: nothing else is begun, and what is being made goes no further than
    its next step.
    """
    ended = threading.Event()

    def told(line: str) -> None:
        if ended.is_set():
            raise NotBegun(line)
        progress(line)

    def ensure(recipe: Recipe, before: Mapping[str, Future[Path]]) -> Path:
        made = {name: future.result() for name, future in before.items()}
        if ended.is_set():
            raise NotBegun(recipe.name)
        try:
            return cache.ensure(recipe, made, told)
        except BaseException:
            ended.set()  # at once: the other lane must not take its next recipe first
            raise

    with ThreadPoolExecutor(1) as compiling, ThreadPoolExecutor(1) as fetching:
        waiting: dict[str, Future[Path]] = {}
        for recipe in ordered:
            names = list(waiting) if recipe is ordered[-1] else [need.name for need in recipe.needs]
            # One lane waits for the other only through what is needed, which its own lane began before.
            lane = compiling if recipe.needs or isinstance(recipe, binaries.GoPrograms) else fetching
            waiting[recipe.name] = lane.submit(ensure, recipe, {name: waiting[name] for name in names})
        try:
            for done in as_completed(waiting.values()):
                # Of all that have ended by now any may come first, and what was left alone for it is no cause.
                if not isinstance(done.exception(), NotBegun):
                    done.result()
        except BaseException:
            ended.set()
            progress("giving up as soon as what is being made can be left")
            raise
        return waiting[ordered[-1].name].result()
