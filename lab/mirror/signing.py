"""The key that the mirror signs its packages with."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from lab.cache import Progress, Recipe
from lab.mirror.command import run


@dataclass(frozen=True)
class SigningKey:
    """The key of the repository, made once on this machine; it vouches for nothing outside the lab."""

    name: str = "signing-key"
    needs: Sequence[Recipe] = field(default=())

    def inputs(self) -> bytes:
        """Who the key says it is."""
        return b"haproof lab mirror, ed25519"

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        """Make the key, and export both its halves."""
        user = "haproof lab mirror <mirror@haproof.invalid>"
        gpg(
            [
                ["--passphrase", "", "--quick-generate-key", user, "ed25519", "sign", "never"],
                ["--armor", "-o", into / "Release.key", "--export"],
                ["--armor", "-o", into / "secret.key", "--export-secret-keys"],
            ]
        )
        (into / "secret.key").chmod(0o600)


def gpg(calls: Sequence[Sequence[str | Path]]) -> None:
    """Run gpg for each of `calls` on one new key ring, which is gone afterwards.

    Its folder has a short name: the agent's socket in it may have 107 characters at most. The agent is told to run
    the calls, so that it ends with them, also when we are killed.
    """
    with TemporaryDirectory(prefix="haproof-gpg-") as home:
        common = ["gpg", "--homedir", home, "--batch", "--yes", "--quiet", "--pinentry-mode", "loopback"]
        lines = [f"trap 'gpgconf --homedir {shlex.quote(home)} --kill all' EXIT"]
        lines += [shlex.join([*common, *map(str, call)]) for call in calls]
        run(["gpg-agent", "--homedir", home, "--daemon", "sh", "-ec", "\n".join(lines)], timeout_s=60)
