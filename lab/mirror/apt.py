"""The machine's own apt sources, as apt itself tells them."""

from dataclasses import dataclass
from functools import cache

from lab.cache import BuildError
from lab.mirror import versions
from lab.mirror.command import run

FORMAT = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)"


@dataclass(frozen=True)
class Source:
    """One suite of one archive: `uri` ends in a slash."""

    uri: str
    suite: str
    components: tuple[str, ...]


def parse(listing: str, release: str) -> tuple[Source, ...]:
    """The sources of `release` (its updates and security suites included) in apt's `listing`. Pure."""
    components: dict[tuple[str, str], list[str]] = {}
    for line in listing.splitlines():
        uri, suite, component = line.split("|")
        if suite == release or suite.startswith(f"{release}-"):
            components.setdefault((uri.rstrip("/") + "/", suite), []).append(component)
    return tuple(Source(uri, suite, tuple(dict.fromkeys(found))) for (uri, suite), found in components.items())


@cache
def sources(release: str) -> tuple[Source, ...]:
    """What this machine is set up to fetch `release` from, asked once; raises BuildError when it is not."""
    found = parse(run(["apt-get", "indextargets", "--format", FORMAT, "Identifier: Packages"]), release)
    if not any(source.suite == release for source in found):
        raise BuildError(
            f"apt on this machine has no source of Debian {release} (or its lists are empty: run `apt-get update`)"
        )
    return found


def beside(release: str) -> tuple[Source, ...]:
    """Another release, from the archive that this machine has its own from; raises BuildError."""
    own = next(source for source in sources(versions.DEBIAN) if source.suite == versions.DEBIAN)
    return (Source(own.uri, release, ("main",)),)


def path_of(source: Source) -> str:
    """Where the mirror serves a source: `/debian/SUITE/`, one path for each suite. Pure."""
    return f"/debian/{source.suite}/"
