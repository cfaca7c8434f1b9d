"""The build cache: once, whole, or not at all."""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import pytest

from lab.cache import BuildError, Cache, Progress, Recipe, key


@dataclass
class Writing:
    """A recipe that writes one file, and counts how often."""

    name: str = "thing"
    text: str = "content"
    needs: Sequence[Recipe] = ()
    during: Callable[[], None] = lambda: None
    built: list[Path] = field(default_factory=list)

    def inputs(self) -> bytes:
        return self.text.encode()

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        self.built.append(into)
        (into / "half").write_text("half")
        self.during()
        (into / "file").write_text(self.text)


def silent(_: str) -> None:
    """Hear nothing."""


def test_an_entry_is_built_once(tmp_path: Path) -> None:
    cache, recipe = Cache(tmp_path), Writing()
    first = cache.ensure(recipe, {}, silent)
    assert cache.ensure(recipe, {}, silent) == first
    assert (first / "file").read_text() == "content"
    assert len(recipe.built) == 1


def test_other_inputs_are_another_entry_and_so_are_other_needs() -> None:
    keys = {key(Writing()), key(Writing(text="other")), key(Writing(needs=[Writing("need")]))}
    keys |= {key(Writing(needs=[Writing("need", text="other")]))}
    assert len(keys) == 4


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        raise BuildError("no")

    with pytest.raises(BuildError):
        Cache(tmp_path).ensure(Writing(during=fail), {}, silent)
    assert Cache(tmp_path).entries() == []


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _build(folder: Path, recipe: Writing) -> None:
    Cache(folder).ensure(recipe, {}, silent)


def test_a_killed_builder_leaves_only_what_the_next_one_clears(tmp_path: Path) -> None:
    builder = get_context("fork").Process(target=_build, args=(tmp_path, Writing(during=_die)))
    builder.start()
    builder.join()
    assert builder.exitcode == -signal.SIGKILL
    assert [entry.partial for entry in Cache(tmp_path).entries()] == [True]
    entry = Cache(tmp_path).ensure(Writing(), {}, silent)
    assert [e.path for e in Cache(tmp_path).entries()] == [entry]
    assert (entry / "file").exists()


def test_two_builders_make_one_entry(tmp_path: Path) -> None:
    recipe = Writing(during=lambda: time.sleep(0.2))
    heard: list[str] = []
    threads = [threading.Thread(target=Cache(tmp_path).ensure, args=(recipe, {}, heard.append)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(recipe.built) == 1
    assert any("waiting for another run" in line for line in heard)


def test_a_full_disk_is_one_clear_message(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BuildError, match=r"no room to build thing in .*MiB free.*lab cache prune"):
        Cache(tmp_path).ensure(Writing(during=full), {}, silent)
    assert Cache(tmp_path).entries() == []


def test_prune_keeps_what_is_named_and_drops_what_a_dead_builder_left(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    kept, outdated = cache.ensure(Writing(), {}, silent), cache.ensure(Writing(text="old"), {}, silent)
    (tmp_path / "dead-0.partial-1").mkdir()
    assert {entry.path.name for entry in cache.prune({kept.name})} == {outdated.name, "dead-0.partial-1"}
    assert [path.name for path in sorted(tmp_path.iterdir())] == [".lock", f".{kept.name}.lock", kept.name]


def test_prune_keeps_what_a_running_mirror_serves(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    part = cache.ensure(Writing("part"), {}, silent)
    served = cache.ensure(Writing("served"), {}, silent)
    (served / "link").symlink_to(part / "file")
    with cache.using(served):
        assert cache.prune(set()) == []
    assert {entry.path for entry in cache.prune(set())} == {part, served}


def test_prune_refuses_while_something_is_built(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with cache.building(), pytest.raises(BuildError, match="another run is building"):
        cache.prune(set())


def test_a_folder_that_cannot_be_written_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match=r"cannot build in .*set XDG_CACHE_HOME"):
        Cache(tmp_path / "file/builds").ensure(Writing(), {}, silent)
