"""Debian roots of this machine's own apt sources."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from lab.mirror import apt, versions
from lab.mirror.command import run


def bootstrap(
    root: Path,
    packages: Sequence[str],
    *,
    variant: str,
    dpkg_options: Sequence[str] = (),
    release: str = versions.DEBIAN,
) -> None:
    """Install `packages` into the new folder `root`; `variant` is mmdebstrap's. Raises BuildError."""
    sources = apt.sources(release) if release == versions.DEBIAN else apt.beside(release)
    lines = [f"deb {s.uri} {s.suite} {' '.join(s.components)}\n" for s in sources]
    options = [f"--dpkgopt={option}" for option in dpkg_options]
    if release != versions.DEBIAN:
        # What mirrors keep of a release that moves may be some days old; its signature is checked all the same.
        options.append('--aptopt=Acquire::Check-Valid-Until "false"')
    options += ['--aptopt=Acquire::Languages "none"', '--aptopt=Acquire::Retries "3"']
    what = ["--mode=root", f"--variant={variant}", f"--include={','.join(packages)}", *options]
    # In namespaces of its own: when it is killed with us, so is all that it has started, and its mounts are gone.
    alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    run([*alone, "mmdebstrap", *what, release, root, "-"], stdin="".join(lines))


def keep_licences(root: Path, into: Path) -> None:
    """Copy the copyright file of each package that is installed below `root`."""
    for found in sorted((root / "usr/share/doc").glob("*/copyright")):
        if not found.is_symlink():
            target = into / found.parent.name
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found, target / found.name)
