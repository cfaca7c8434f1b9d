"""A build cache: each entry is made once, named by everything that decides what it holds."""

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol
from uuid import uuid4

import typer

from lab.paths import Paths

PARTIAL = ".partial-"
Progress = Callable[[str], None]


class BuildError(Exception):
    """An entry could not be made; the message names it, the cause and what to do."""


class Recipe(Protocol):
    """How to make one entry."""

    @property
    def name(self) -> str:
        """What is made, as a short file name."""

    @property
    def needs(self) -> Sequence["Recipe"]:
        """Recipes whose results this one reads."""

    def inputs(self) -> bytes:
        """Everything else that decides the result: versions, sources, options, the maker's own text."""

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        """Make the result in the empty folder `into`; `made` maps the names of `needs` to their results."""


def key(recipe: Recipe) -> str:
    """The name of the recipe's entry: `name-` and 16 hex digits over all inputs, those of its needs included."""
    digest = hashlib.sha256(recipe.inputs())
    for need in recipe.needs:
        digest.update(key(need).encode())
    return f"{recipe.name}-{digest.hexdigest()[:16]}"


@dataclass(frozen=True)
class Entry:
    """One folder of the cache, and its size in bytes."""

    path: Path
    size_bytes: int
    used: float

    @property
    def partial(self) -> bool:
        """Whether it is what a builder left that did not end."""
        return PARTIAL in self.path.name


@dataclass(frozen=True)
class Cache:
    """Entries under `folder`; safe for several builders, and for builders that are killed."""

    folder: Path

    def ensure(self, recipe: Recipe, made: Mapping[str, Path], progress: Progress) -> Path:
        """The folder of the recipe's result, made now if it is not there yet.

        A builder works in a folder of its own that takes the entry's name only when it is whole and on disk.
        Raises BuildError.
        """
        entry = self.folder / key(recipe)
        if entry.is_dir():
            os.utime(entry)
            return entry
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._held(entry, progress):
                if not entry.is_dir():
                    self._build(recipe, entry, made, progress)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            free_mib = shutil.disk_usage(self.folder).free >> 20
            raise BuildError(
                f"no room to build {recipe.name} in {self.folder} ({free_mib} MiB free); "
                "free some, or drop old entries by `python -m lab cache prune`"
            ) from error
        return entry

    def _build(self, recipe: Recipe, entry: Path, made: Mapping[str, Path], progress: Progress) -> None:
        for dead in self.folder.glob(f"{entry.name}{PARTIAL}*"):
            shutil.rmtree(dead)  # we hold the entry's lock, so whoever made it is gone
        partial = self.folder / f"{entry.name}{PARTIAL}{uuid4().hex[:8]}"
        started = time.monotonic()
        progress(f"building {recipe.name}")
        partial.mkdir()
        try:
            recipe.build(partial, made, progress)
            os.sync()
            partial.rename(entry)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        progress(f"built {recipe.name} in {time.monotonic() - started:.0f} s")

    @contextmanager
    def _held(self, entry: Path, progress: Progress) -> Iterator[None]:
        with (self.folder / f".{entry.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress(f"waiting for another run that builds {entry.name}")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _busy(self, entry: Path) -> bool:
        """Whether a builder holds the entry's lock."""
        name = entry.name.split(PARTIAL)[0]
        with (self.folder / f".{name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def entries(self) -> list[Entry]:
        """Everything in the cache, by name."""
        if not self.folder.is_dir():
            return []
        return [
            Entry(path, sum(f.lstat().st_size for f in path.rglob("*")), path.stat().st_mtime)
            for path in sorted(self.folder.iterdir())
            if path.is_dir()
        ]

    def prune(self, keep: set[str]) -> list[Entry]:
        """Remove entries not named in `keep` and what dead builders left; those being built stay."""
        removed = []
        for entry in self.entries():
            if entry.path.name not in keep and not self._busy(entry.path):
                shutil.rmtree(entry.path)
                removed.append(entry)
        return removed


def builds(paths: Paths) -> Cache:
    """The cache of what the mirror serves."""
    return Cache(paths.cache / "builds")


cache_app = typer.Typer(help="What the mirror serves was built once and is kept: show it, or drop what is outdated.")


def _told(entry: Entry) -> str:
    age_days = (time.time() - entry.used) / 86_400
    state = "  unfinished" if entry.partial else ""
    return f"{entry.size_bytes / 2**20:9.1f} MiB  used {age_days:4.1f} days ago  {entry.path.name}{state}"


@cache_app.command("list")
def list_entries() -> None:
    """Show every entry with its size and when it was last used."""
    cache = builds(Paths.default())
    entries = cache.entries()
    for entry in entries:
        typer.echo(_told(entry))
    typer.echo(f"{sum(e.size_bytes for e in entries) / 2**20:9.1f} MiB in {cache.folder}")


@cache_app.command()
def prune(
    everything: Annotated[bool, typer.Option("--all", help="Drop what is current as well; it is built anew.")] = False,
) -> None:
    """Drop entries that this version of haproof does not use, and what unfinished builds left."""
    from lab.mirror.content import SOURCES, recipes  # noqa: PLC0415 - the recipes import this module

    paths = Paths.default()
    keep = set() if everything else {key(recipe) for source in SOURCES for recipe in recipes(source)}
    for entry in builds(paths).prune(keep):
        typer.echo(f"dropped {_told(entry)}")
