"""The WordPress image's start, by its own script, on folders of a test: many at once, and killed anywhere."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.mirror.wordpress import SOURCES
from provisioning.poll import poll

STARTS = 3
PHRASES = 8  # keys and salts of wp-config.php


def program(path: Path, text: str) -> None:
    """A shell script that can be run."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@dataclass(frozen=True)
class Image:
    """The image's script with its folders elsewhere, and programs of its own beside those of the machine."""

    folder: Path

    @property
    def volume(self) -> Path:
        """What replicas share."""
        return self.folder / "html"

    @property
    def source(self) -> Path:
        """What is copied there."""
        return self.folder / "source"

    def start(self, *first: Path, **variables: str) -> "subprocess.Popen[str]":
        """A replica, in a process group of its own; programs in the folders `first` go before all others."""
        path = ":".join(map(str, (*first, self.folder / "bin", os.environ["PATH"])))
        return subprocess.Popen(
            [self.folder / "docker-entrypoint.sh", "apache2-foreground"],
            env={"PATH": path, "WORDPRESS_DB_HOST": "192.0.2.1", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


@pytest.fixture
def image(tmp_path: Path) -> Image:
    image = Image(tmp_path)
    script = (SOURCES / "docker-entrypoint.sh").read_text()
    # Time passes four times as fast, and a lock whose owner was killed is taken over after 10 of its beats.
    for old, new in {
        "/var/www/html": str(image.volume),
        "/usr/src/wordpress": str(image.source),
        "beats_missed_max=20": "beats_missed_max=10",
        "sleep 1\n": "sleep 0.25\n",
    }.items():
        assert old in script
        script = script.replace(old, new)
    (tmp_path / "docker-entrypoint.sh").write_text(script)
    (tmp_path / "docker-entrypoint.sh").chmod(0o755)
    # What serves, and says which settings it began with.
    program(tmp_path / "bin/apache2-foreground", f"echo serving $(sha256sum < {image.volume}/wp-config.php)")
    # Files of the test belong to whoever runs it.
    program(tmp_path / "bin/setpriv", 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"')
    image.volume.mkdir()
    for name in ("index.php", "wp-includes/version.php", "wp-content/themes/x/style.css", ".htaccess"):
        (image.source / name).parent.mkdir(parents=True, exist_ok=True)
        (image.source / name).write_text(f"this is {name}\n")
    for n in range(100):
        (image.source / f"wp-includes/file{n}.php").write_text("x" * n)
    shutil.copy(SOURCES / "wp-config-docker.php", image.source)
    return image


def whole(image: Image) -> None:
    """Every file is there, as it should be, and nothing else but what one that was killed left out of the way."""

    def files(folder: Path) -> dict[str, bytes]:
        found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".wordpress-")}

    there, wanted = files(image.volume), files(image.source)
    settings, described = there.pop("wp-config.php").decode(), wanted.pop("wp-config-docker.php").decode()
    assert there == wanted
    phrases = re.findall(r"define\('\w+(?:KEY|SALT)', getenv_docker\('\w+', '([^']+)'\)\);", settings)
    assert len(set(phrases)) == len(phrases) == PHRASES
    assert all(len(phrase) == 64 for phrase in phrases)
    for phrase in phrases:
        settings = settings.replace(phrase, "put your unique phrase here")
    assert settings == described
    assert (image.volume / "wp-config.php").stat().st_mode & 0o777 == 0o600


def killed(replica: "subprocess.Popen[str]") -> None:
    """End a replica and what it has started, as a power cut would; one that has ended already is left alone."""
    if replica.poll() is None:
        os.killpg(replica.pid, signal.SIGKILL)
        replica.communicate()


def served(image: Image, replicas: "list[subprocess.Popen[str]]") -> set[str]:
    """What each replica began with; every one must have begun."""
    try:
        told = [replica.communicate(timeout=60) for replica in replicas]
    finally:
        for replica in replicas:
            killed(replica)
    assert [replica.returncode for replica in replicas] == [0] * len(replicas), told
    return {out.removeprefix("serving ").split()[0] for out, _ in told}


def test_three_that_start_at_once_put_one_whole_copy_there(image: Image) -> None:
    begun_with = served(image, [image.start() for _ in range(STARTS)])
    assert begun_with == {hashlib.sha256((image.volume / "wp-config.php").read_bytes()).hexdigest()}
    whole(image)
    assert not list(image.volume.glob(".wordpress-*"))


# Where the first one is killed: the program that it calls, and at which call of it.
PLACES = {
    "copying": ("cp", 1, '/bin/cp "$@" && rm -rf "$3/index.php" "$3/wp-content"'),
    "moving the first": ("mv", 1, ""),
    "moving the third": ("mv", 3, ""),
    "moving the last": ("mv", 4, '/bin/mv "$@"'),
    "writing phrases": ("base64", 4, ""),
    "linking the settings": ("ln", 1, ""),
    "settings linked": ("ln", 1, '/bin/ln "$@"'),
}


@pytest.mark.parametrize(("called", "times", "done"), PLACES.values(), ids=PLACES)
def test_one_that_is_killed_leaves_it_to_the_next_ones(image: Image, called: str, times: int, done: str) -> None:
    reached, count = image.folder / "reached", image.folder / "count"
    program(
        image.folder / "hanging" / called,
        f"""
        echo >>{count}
        [ $(wc -l <{count}) = {times} ] || exec {shutil.which(called)} "$@"
        {done}
        touch {reached}
        exec sleep 600
        """,
    )
    first = image.start(image.folder / "hanging")
    try:
        poll(f"the first one at {called}", reached.exists, timeout_s=30, interval_s=0.02)
    finally:
        killed(first)
    begun_with = served(image, [image.start() for _ in range(STARTS)])
    assert len(begun_with) == 1, "not one set of salts"
    whole(image)


def test_what_is_there_already_stays_as_it_is(image: Image) -> None:
    first = served(image, [image.start()])
    (image.volume / "wp-content/themes/x/style.css").write_text("an editor's own")
    (image.volume / "wp-content/uploads").mkdir()
    (image.volume / "wp-content/uploads/1.png").write_bytes(b"1")
    (image.volume / "index.php").unlink()  # as if it had been killed before that
    assert served(image, [image.start() for _ in range(STARTS)]) == first
    assert (image.volume / "wp-content/themes/x/style.css").read_text() == "an editor's own"
    assert (image.volume / "wp-content/uploads/1.png").read_bytes() == b"1"
    assert (image.volume / "index.php").read_text() == "this is index.php\n"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda image: image.volume.rmdir(), "No such file or directory"),
        (lambda image: shutil.rmtree(image.source / "wp-includes"), "copying failed"),
    ],
    ids=["no volume", "no source"],
)
def test_a_copy_that_cannot_be_made_is_told_and_nothing_is_served(
    image: Image, spoil: Callable[[Image], object], told: str
) -> None:
    spoil(image)
    if told == "copying failed":
        program(image.folder / "bin/cp", "exit 1")
    replica = image.start()
    out, err = replica.communicate(timeout=30)
    assert (replica.returncode, out) == (1, "")
    assert f"WordPress cannot be put into {image.volume}: " in err
    assert told in err
