"""Helm as a package, and the index of a chart repository that holds no chart: the document uses none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.cache import Progress, Recipe
from lab.mirror import binaries, versions
from lab.mirror.command import run
from lab.mirror.debs import Package, Repository
from lab.mirror.signing import SigningKey

# Named as in the apt source that Helm's own documentation gives.
PACKAGES = (
    Package(
        "helm",
        f"{versions.HELM}-1",
        "package manager of Kubernetes",
        {"usr/bin/helm": (binaries.HELM.name, "helm")},
    ),
)
HELM = Repository("helm/deb", PACKAGES, "helm-packages", (binaries.HELM, SigningKey()))


@dataclass(frozen=True)
class Charts:
    """`charts/index.yaml`, written by Helm itself."""

    name: str = "charts"
    needs: Sequence[Recipe] = (binaries.HELM,)

    def inputs(self) -> bytes:
        """Nothing but Helm decides."""
        return b"no charts"

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        """Let Helm index an empty folder."""
        (into / "charts").mkdir()
        run([made[binaries.HELM.name] / "bin/helm", "repo", "index", into / "charts"])
