"""Debian packages made of what was built, and the signed flat repositories they are fetched from."""

import gzip
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path

from lab.cache import Progress, Recipe
from lab.mirror import binaries, versions
from lab.mirror.command import run
from lab.mirror.signing import SigningKey, gpg

REPOSITORY = f"core:/stable:/{versions.STREAM}/deb"
KUBERNETES_VERSION = f"{versions.KUBERNETES}-{versions.PACKAGE_REVISION}"
KUBELET_UNIT = """\
[Unit]
Description=kubelet: the Kubernetes node agent
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=/usr/bin/kubelet
Restart=always
StartLimitInterval=0
RestartSec=10

[Install]
WantedBy=multi-user.target
"""
# kubeadm writes the two environment files; the empty ExecStart= clears the unit's own.
KUBEADM_DROP_IN = """\
[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
--kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
EnvironmentFile=-/etc/default/kubelet
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
"""
KUBELET_POSTINST = """\
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
deb-systemd-helper enable kubelet.service
if [ -d /run/systemd/system ]; then systemctl start --no-block kubelet.service || true; fi
"""


@dataclass(frozen=True)
class Package:
    """One package: programs and folders from recipes' results, files with their text, and what it depends on.

    `programs` maps a path to a recipe and the name below its `bin/`; `trees` a path to a recipe and a folder of its.
    Without a version of its own, it has that of the recipe `versioned_by`, which says it in a file `version`.
    """

    name: str
    version: str
    summary: str
    programs: Mapping[str, tuple[str, str]]
    files: Mapping[str, str] = field(default_factory=dict)
    depends: Sequence[str] = ()
    postinst: str = ""
    trees: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    versioned_by: str = ""

    def control(self, version: str) -> str:
        """The control file (deb-control(5))."""
        lines = {
            "Package": self.name,
            "Version": version,
            "Architecture": "amd64",
            "Maintainer": "haproof",
            "Section": "admin",
            "Priority": "optional",
            "Depends": ", ".join(self.depends),
            "Description": self.summary,
        }
        return "".join(f"{key}: {value}\n" for key, value in lines.items() if value)


# Relations as the project's own packages have them.
PACKAGES = (
    Package(
        "kubernetes-cni",
        f"{versions.CNI_PLUGINS}-{versions.PACKAGE_REVISION}",
        "plugins of the Container Network Interface",
        {f"opt/cni/bin/{program}": ("cni", program) for program in binaries.CNI_PROGRAMS},
    ),
    Package(
        "cri-tools",
        f"{versions.CRICTL}-{versions.PACKAGE_REVISION}",
        "command line client of container runtimes",
        {"usr/bin/crictl": ("crictl", "crictl")},
    ),
    Package(
        "kubectl",
        KUBERNETES_VERSION,
        "command line client of Kubernetes",
        {"usr/bin/kubectl": ("kubernetes", "kubectl")},
    ),
    Package(
        "kubelet",
        KUBERNETES_VERSION,
        "node agent of Kubernetes",
        {"usr/bin/kubelet": ("kubernetes", "kubelet")},
        files={
            "usr/lib/systemd/system/kubelet.service": KUBELET_UNIT,
            "etc/default/kubelet": "KUBELET_EXTRA_ARGS=\n",
        },
        depends=(
            "iptables (>= 1.4.21)",
            "kubernetes-cni",
            "iproute2",
            "socat",
            "util-linux",
            "mount",
            "ebtables",
            "ethtool",
            "conntrack",
            "init-system-helpers",
        ),
        postinst=KUBELET_POSTINST,
    ),
    Package(
        "kubeadm",
        KUBERNETES_VERSION,
        "sets up Kubernetes clusters",
        {"usr/bin/kubeadm": ("kubernetes", "kubeadm")},
        files={"usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf": KUBEADM_DROP_IN},
        depends=(f"kubelet (>= {versions.KUBERNETES})", "kubectl (>= 1.19.0)", "cri-tools (>= 1.30.0)"),
    ),
)


@dataclass(frozen=True)
class Repository:
    """A signed flat repository at `path` below the mirror's root: packages, their index, and the signed Release."""

    path: str
    packages: Sequence[Package]
    name: str
    needs: Sequence[Recipe]

    def inputs(self) -> bytes:
        """Every package's description."""
        described = [
            (p.control(p.version), dict(p.files), dict(p.programs), dict(p.trees), p.postinst, p.versioned_by)
            for p in self.packages
        ]
        return json.dumps([described, self.path]).encode()

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        """Build each package, index them, sign the index."""
        folder = into / self.path
        (folder / "amd64").mkdir(parents=True)
        for package in self.packages:
            version = package.version or (made[package.versioned_by] / "version").read_text().strip()
            pack(package, version, into / "root", folder / "amd64", made)
            progress(f"packaged {package.name} {version}")
        publish(folder, made["signing-key"])


def pack(package: Package, version: str, root: Path, into: Path, made: Mapping[str, Path]) -> None:
    """Lay the package out in `root` and build it in `into`; raises BuildError."""
    for path, (recipe, program) in package.programs.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made[recipe] / "bin" / program, root / path)
        (root / path).chmod(0o755)
    for path, (recipe, tree) in package.trees.items():
        shutil.copytree(made[recipe] / tree, root / path, symlinks=True)
    for path, text in package.files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
        (root / path).chmod(0o755 if text.startswith("#!") else 0o644)
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(package.control(version))
    (root / "DEBIAN/conffiles").write_text("".join(f"/{p}\n" for p in package.files if p.startswith("etc/")))
    if package.postinst:
        (root / "DEBIAN/postinst").write_text(package.postinst)
        (root / "DEBIAN/postinst").chmod(0o755)
    name = f"{package.name}_{version}_amd64.deb"
    # Unpacked once on every node: speed of unpacking counts, size does not.
    run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", root, into / name])
    shutil.rmtree(root)


KUBERNETES = Repository(
    REPOSITORY, PACKAGES, "packages", (binaries.KUBERNETES, binaries.CRICTL, binaries.CNI, SigningKey())
)


def publish(folder: Path, signing_key: Path) -> None:
    """Index the packages in `folder`/amd64 and sign the index with the key in `signing_key`, which is laid beside."""
    index = run(["dpkg-scanpackages", "--multiversion", "amd64"], cwd=folder).encode()
    (folder / "Packages").write_bytes(index)
    (folder / "Packages.gz").write_bytes(gzip.compress(index, mtime=0))
    (folder / "Release").write_text(_release(folder))
    gpg(
        [
            ["--import", signing_key / "secret.key"],
            ["--clearsign", "-o", folder / "InRelease", folder / "Release"],
            ["--armor", "--detach-sign", "-o", folder / "Release.gpg", folder / "Release"],
        ]
    )
    shutil.copyfile(signing_key / "Release.key", folder / "Release.key")


def _release(folder: Path) -> str:
    lines = [
        "Origin: haproof",
        "Label: haproof lab mirror",
        "Suite: stable",
        "Architectures: amd64",
        f"Date: {formatdate(usegmt=True)}",
        "SHA256:",
    ]
    for name in ("Packages", "Packages.gz"):
        content = (folder / name).read_bytes()
        lines.append(f" {hashlib.sha256(content).hexdigest()} {len(content)} {name}")
    return "\n".join(lines) + "\n"
