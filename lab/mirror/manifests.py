"""Manifests as their projects ship them, taken byte for byte from their Go modules."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.cache import Progress, Recipe
from lab.mirror import versions
from lab.mirror.command import retried, run

MANIFESTS = {
    f"metallb-native-v{versions.METALLB}.yaml": (
        f"go.universe.tf/metallb@v{versions.METALLB}",
        "config/manifests/metallb-native.yaml",
    ),
    f"kube-flannel-v{versions.FLANNEL}.yaml": (
        f"github.com/flannel-io/flannel@v{versions.FLANNEL}",
        "Documentation/kube-flannel.yml",
    ),
}


@dataclass(frozen=True)
class Manifests:
    """The manifests under the names that the mirror serves."""

    name: str = "manifests"
    needs: Sequence[Recipe] = field(default=())

    def inputs(self) -> bytes:
        """Which files of which modules."""
        return json.dumps(MANIFESTS).encode()

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        """Copy the one file of each module."""
        for name, (module, path) in MANIFESTS.items():
            shutil.copyfile(_module(module, into) / path, into / name)


@retried
def _module(module: str, cwd: Path) -> Path:
    """Download a Go module, its checksum verified by go, and return its folder."""
    return Path(json.loads(run(["go", "mod", "download", "-json", module], cwd=cwd))["Dir"])
