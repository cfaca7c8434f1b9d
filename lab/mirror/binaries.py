"""Go programs compiled from their modules: Kubernetes, etcd, CoreDNS, flannel, MetalLB and their tools."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from lab.cache import BuildError, Progress, Recipe
from lab.mirror import versions
from lab.mirror.command import retried, run

MODULES = Path(__file__).parent / "modules"
GO_MINIMUM = (1, 22)
GO_TIMEOUT_S = 2400


@cache
def go_version() -> str:
    """The installed Go, as `go1.26.8`, asked once; raises BuildError when there is none or it is too old."""
    version = run(["go", "env", "GOVERSION"]).strip()
    match = re.match(r"go(\d+)\.(\d+)", version)
    if not match or (int(match[1]), int(match[2])) < GO_MINIMUM:
        raise BuildError(f"Go {version} is too old to build Kubernetes; install Go 1.22 or newer")
    return version


@dataclass(frozen=True)
class GoPrograms:
    """Programs of one wrapper module in `modules/`, built into `bin/`; `programs` maps file names to packages."""

    name: str
    programs: Mapping[str, str]
    ldflags: str = "-s -w"
    cgo: bool = False
    needs: Sequence[Recipe] = field(default=())

    def inputs(self) -> bytes:
        """The wrapper module's files, the programs, the flags and the compiler."""
        files = [(path.name, path.read_text()) for path in sorted((MODULES / self.name).iterdir())]
        return json.dumps([files, dict(self.programs), self.ldflags, self.cgo, go_version()]).encode()

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        """Compile each program, and lay the modules' licences beside them."""
        work = into / "src"
        shutil.copytree(MODULES / self.name, work)
        (work / "tmp").mkdir()
        for program, package in self.programs.items():
            self._compile(work, package, into / "bin" / program)
            progress(f"compiled {program}")
        self._licences(work, into / "licences")
        shutil.rmtree(work)

    def _environment(self, work: Path) -> dict[str, str]:
        """What go is told: its versions and their checksums are ours, and what it leaves when killed is cleared."""
        return {
            "CGO_ENABLED": "1" if self.cgo else "0",
            "GOFLAGS": "-mod=readonly -buildvcs=false",
            "GOTMPDIR": str(work / "tmp"),
        }

    @retried
    def _compile(self, work: Path, package: str, output: Path) -> None:
        ldflags = f"{self.ldflags} -extldflags -static" if self.cgo else self.ldflags
        command: list[str | Path] = ["go", "build", "-trimpath", "-ldflags", ldflags, "-o", output, package]
        run(command, cwd=work, env=self._environment(work), timeout_s=GO_TIMEOUT_S)

    def _licences(self, work: Path, into: Path) -> None:
        """Copy the licence files of every module that the programs are made of."""
        template = "{{with .Module}}{{.Path}}\t{{.Dir}}{{end}}"
        packages = sorted(set(self.programs.values()))
        listed = run(["go", "list", "-deps", "-f", template, *packages], cwd=work, env=self._environment(work))
        for line in sorted(set(listed.split("\n")) - {""}):
            module, _, folder = line.partition("\t")
            for found in sorted(Path(folder).glob("[LN][IO][CT]*E*")) if folder else ():
                if found.is_file() and not module.startswith("haproof/"):
                    target = into / module.replace("/", "_") / found.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(found, target)


def _kubernetes_ldflags() -> str:
    """What `kubectl version` and the image names go by, as the project's own build sets it."""
    major, minor, _ = versions.KUBERNETES.split(".")
    base, client = "k8s.io/component-base/version", "k8s.io/client-go/pkg/version"
    values = {
        f"{base}.gitVersion": f"v{versions.KUBERNETES}",
        f"{base}.gitMajor": major,
        f"{base}.gitMinor": minor,
        f"{base}.gitTreeState": "clean",
        f"{base}.buildDate": versions.KUBERNETES_DATE,
        f"{client}.gitVersion": f"v{versions.KUBERNETES}",
        f"{client}.gitMajor": major,
        f"{client}.gitMinor": minor,
    }
    return "-s -w " + " ".join(f"-X {name}={value}" for name, value in values.items())


KUBERNETES_PROGRAMS = (
    "kubeadm",
    "kubectl",
    "kubelet",
    "kube-proxy",
    "kube-scheduler",
    "kube-controller-manager",
    "kube-apiserver",
)
_CNI = "github.com/containernetworking/plugins/plugins"
CNI_PROGRAMS = {
    "bridge": f"{_CNI}/main/bridge",
    "loopback": f"{_CNI}/main/loopback",
    "ptp": f"{_CNI}/main/ptp",
    "host-local": f"{_CNI}/ipam/host-local",
    "bandwidth": f"{_CNI}/meta/bandwidth",
    "firewall": f"{_CNI}/meta/firewall",
    "flannel": f"{_CNI}/meta/flannel",
    "portmap": f"{_CNI}/meta/portmap",
    "tuning": f"{_CNI}/meta/tuning",
}
KUBERNETES = GoPrograms(
    "kubernetes", {p: f"k8s.io/kubernetes/cmd/{p}" for p in KUBERNETES_PROGRAMS}, ldflags=_kubernetes_ldflags()
)
ETCD = GoPrograms("etcd", {"etcd": "go.etcd.io/etcd/server/v3", "etcdctl": "go.etcd.io/etcd/etcdctl/v3"})
COREDNS = GoPrograms("coredns", {"coredns": "."})
FLANNEL = GoPrograms("flannel", {"flanneld": "github.com/flannel-io/flannel"}, cgo=True)
METALLB = GoPrograms(
    "metallb", {"controller": "go.universe.tf/metallb/controller", "speaker": "go.universe.tf/metallb/speaker"}
)
CRICTL = GoPrograms("crictl", {"crictl": "github.com/kubernetes-sigs/cri-tools/cmd/crictl"})
CNI = GoPrograms("cni", CNI_PROGRAMS)
HELM = GoPrograms(
    "helm",
    {"helm": "helm.sh/helm/v3/cmd/helm"},
    ldflags=f"-s -w -X helm.sh/helm/v3/internal/version.version=v{versions.HELM}",
)
