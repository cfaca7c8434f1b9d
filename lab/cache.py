"""A build cache: each entry is made once, named by everything that decides what it holds."""

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
    """The name of the recipe's entry: `name-` and 16 hex digits over all that decides the result.

    That is its inputs, the text of the module that makes it, and its needs.
    """
    digest = hashlib.sha256(recipe.inputs())
    maker = sys.modules[type(recipe).__module__].__file__
    digest.update(Path(maker).read_bytes() if maker else b"")
    for need in recipe.needs:
        digest.update(key(need).encode())
    return f"{recipe.name}-{digest.hexdigest()[:16]}"


@dataclass(frozen=True)
class Entry:
    """One folder of the cache, what it takes on disk, and when it was last used (seconds since 1970)."""

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

    @contextmanager
    def building(self) -> Iterator[None]:
        """Keep `prune` away while entries are made, and between one and what is made of it. Raises BuildError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / ".lock").open("w")
        except OSError as error:
            raise BuildError(
                f"cannot build in {self.folder}: {error.strerror}; set XDG_CACHE_HOME to a folder you may write to"
            ) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield

    def ensure(self, recipe: Recipe, made: Mapping[str, Path], progress: Progress) -> Path:
        """The folder of the recipe's result, made now if it is not there yet.

        A builder works in a folder of its own that takes the entry's name only when it is whole and on disk.
        Raises BuildError.
        """
        entry = self.folder / key(recipe)
        with self.building():
            if entry.is_dir():
                os.utime(entry)
                return entry
            try:
                with self._held(entry, progress):
                    if not entry.is_dir():
                        self._build(recipe, entry, made, progress)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                free_mib = shutil.disk_usage(self.folder).free >> 20
                raise BuildError(
                    f"no room to build {recipe.name} in {self.folder} ({free_mib} MiB free); "
                    "free some, or drop old entries by `python -m lab cache prune`"
                ) from error
        return entry

    def _build(self, recipe: Recipe, entry: Path, made: Mapping[str, Path], progress: Progress) -> None:
        for dead in self.folder.glob(f"{entry.name}{PARTIAL}*"):
            # We hold the entry's lock, so its builder is gone; what its last program still writes goes next time.
            _remove(dead)
        partial = self.folder / f"{entry.name}{PARTIAL}{uuid4().hex[:8]}"
        started = time.monotonic()
        progress(f"building {recipe.name}")
        partial.mkdir()
        try:
            recipe.build(partial, made, progress)
            os.sync()
            partial.rename(entry)
        except BaseException:
            _remove(partial)
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

    @contextmanager
    def using(self, entry: Path) -> Iterator[None]:
        """Keep `entry`, and every entry that it links to, from being pruned."""
        with self._use_of(entry).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield

    def _use_of(self, entry: Path) -> Path:
        return self.folder / f".{entry.name}.used"

    def _in_use(self) -> set[str]:
        """The names of the entries that someone uses, and of those that they link to."""
        found: set[str] = set()
        for entry in self.folder.iterdir():
            if not self._use_of(entry).exists():
                continue
            with self._use_of(entry).open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    for path in (entry, *entry.rglob("*")):
                        inside = path.resolve().relative_to(self.folder.resolve()).parts
                        found.add(inside[0])
        return found

    def entries(self) -> list[Entry]:
        """Everything in the cache, by name."""
        if not self.folder.is_dir():
            return []
        folders = sorted(path for path in self.folder.iterdir() if path.is_dir())
        return [Entry(path, size_bytes(path), path.stat().st_mtime) for path in folders]

    def prune(self, keep: set[str]) -> list[Entry]:
        """Remove entries not named in `keep` nor in use, and what dead builders left.

        Raises BuildError while something is being built.
        """
        if not self.folder.is_dir():
            return []
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BuildError(f"another run is building in {self.folder}; prune it when that has ended") from error
            keep = keep | self._in_use()
            removed = [entry for entry in self.entries() if entry.path.name not in keep]
            for entry in removed:
                _remove(entry.path)
            for left in self.folder.glob(".*-*"):
                if not (self.folder / left.stem.removeprefix(".")).is_dir():
                    left.unlink()
        return removed


def _remove(folder: Path) -> None:
    """Remove `folder` but nothing mounted below it: a builder that was killed may have had /proc and /dev there."""
    subprocess.run(["rm", "-rf", "--one-file-system", "--", folder], check=False, stderr=subprocess.DEVNULL)


def size_bytes(folder: Path) -> int:
    """What `folder` takes on disk; files that go away meanwhile do not count."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total


def builds(paths: Paths) -> Cache:
    """The cache of what the mirror serves."""
    return Cache(paths.cache / "builds")


def apt_archive(paths: Paths) -> Path:
    """Where the mirror keeps what nodes fetched of Debian."""
    return paths.cache / "apt"


cache_app = typer.Typer(help="What the mirror serves was built once and is kept: show it, or drop what is outdated.")


def _told(entry: Entry) -> str:
    age_days = (time.time() - entry.used) / 86_400
    state = "  unfinished" if entry.partial else ""
    return f"{entry.size_bytes / 2**20:9.1f} MiB  used {age_days:4.1f} days ago  {entry.path.name}{state}"


@cache_app.command("list")
def list_entries() -> None:
    """Show every entry with its size and when it was last used."""
    paths = Paths.default()
    entries = builds(paths).entries()
    for entry in entries:
        typer.echo(_told(entry))
    apt_bytes = size_bytes(apt_archive(paths))
    typer.echo(f"{apt_bytes / 2**20:9.1f} MiB  what nodes fetched of Debian")
    typer.echo(f"{(sum(e.size_bytes for e in entries) + apt_bytes) / 2**20:9.1f} MiB in {paths.cache}")


@cache_app.command()
def prune(
    everything: Annotated[
        bool, typer.Option("--all", help="Drop what is current as well, and Debian's packages; all is made anew.")
    ] = False,
) -> None:
    """Drop entries that this version of haproof does not use, and what unfinished builds left.

    What a running lab serves stays.
    """
    from lab.mirror.content import SOURCES, recipes  # noqa: PLC0415 - the recipes import this module

    paths = Paths.default()
    try:
        keep = set() if everything else {key(recipe) for source in SOURCES for recipe in recipes(source)}
        for entry in builds(paths).prune(keep):
            typer.echo(f"dropped {_told(entry)}")
    except BuildError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    if everything:
        shutil.rmtree(apt_archive(paths), ignore_errors=True)
