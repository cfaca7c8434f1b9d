"""What the projects themselves publish, fetched in place of built; the same layout, every file checked.

For machines that reach the projects' own hosts. The nodes check the repository's signature as on any target.
"""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_fixed

from environments.load import find, load
from lab.cache import BuildError, Progress, Recipe
from lab.mirror import versions
from lab.mirror.command import run
from lab.mirror.debs import REPOSITORY
from lab.mirror.images import IMAGES, registry

TIMEOUT = httpx.Timeout(120, connect=15)
PACKAGES = ("kubernetes-cni", "cri-tools", "kubectl", "kubelet", "kubeadm")
PACKAGES_URL = f"https://pkgs.k8s.io/{REPOSITORY}/"
MANIFEST_URLS = {
    f"metallb-native-v{versions.METALLB}.yaml": (
        f"https://raw.githubusercontent.com/metallb/metallb/v{versions.METALLB}/config/manifests/metallb-native.yaml"
    ),
    f"kube-flannel-v{versions.FLANNEL}.yaml": (
        f"https://raw.githubusercontent.com/flannel-io/flannel/v{versions.FLANNEL}/Documentation/kube-flannel.yml"
    ),
}
LICENCE_URL = "https://raw.githubusercontent.com/{}"
LICENCES = (
    f"kubernetes/kubernetes/v{versions.KUBERNETES}/LICENSE",
    f"kubernetes-sigs/cri-tools/v{versions.CRICTL}/LICENSE",
    f"containernetworking/plugins/v{versions.CNI_PLUGINS}/LICENSE",
    f"etcd-io/etcd/v{versions.ETCD}/LICENSE",
    f"coredns/coredns/v{versions.COREDNS}/LICENSE",
    f"flannel-io/flannel/v{versions.FLANNEL}/LICENSE",
    f"flannel-io/cni-plugin/{versions.FLANNEL_PLUGIN_TAG}/LICENSE",
    f"metallb/metallb/v{versions.METALLB}/LICENSE",
    "mirror/busybox/master/LICENSE",
    "WordPress/WordPress/master/license.txt",
)
KUBERNETES_REGISTRY = "registry.k8s.io"
REGISTRIES = {"flannel/": "docker.io", "library/": "docker.io", "metallb/": "quay.io"}


class Passing(BuildError):
    """The host did not answer, or not well: asked again some times before this is told."""


@retry(retry=retry_if_exception_type(Passing), stop=stop_after_attempt(4), wait=wait_fixed(2), reraise=True)
def fetch(url: str) -> bytes:
    """The content of `url`; raises BuildError. A refusal (4xx) is final, a host that is slow is asked again."""
    try:
        reply = httpx.get(url, timeout=TIMEOUT, follow_redirects=True)
    except httpx.TransportError as error:
        raise Passing(f"{url} does not answer: {error or type(error).__name__}; try again, or build instead") from error
    if reply.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
        raise Passing(f"{url} answers {reply.status_code}; try again later, or build instead")
    if reply.status_code != httpx.codes.OK:
        raise BuildError(f"{url} answers {reply.status_code}, which is final; it does not have what is asked for")
    return reply.content


def checked(url: str, content: bytes, sha256: str) -> bytes:
    """`content`, when its digest is `sha256`; raises BuildError that names file, expected and found. Pure."""
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise BuildError(f"{url} is not what it should be: expected sha256 {sha256}, found {found}")
    return content


def stanzas(index: str) -> list[dict[str, str]]:
    """The packages of an index (deb822), without continuation lines. Pure."""
    found = []
    for block in index.strip().split("\n\n"):
        fields = (line.partition(": ") for line in block.splitlines() if not line.startswith(" "))
        found.append({name: value for name, _, value in fields})
    return found


def newest(packages: Sequence[dict[str, str]], name: str) -> dict[str, str]:
    """The newest version of `name` for this architecture, by dpkg's own rules; raises BuildError."""
    candidates = [p for p in packages if p.get("Package") == name and p.get("Architecture") in ("amd64", "all")]
    if not candidates:
        raise BuildError(f"the repository lists no package {name}")

    # The versions are another host's text: words of a command here, never part of a script.
    best = candidates[0]
    for package in candidates[1:]:
        command = ["dpkg", "--compare-versions", package["Version"], "gt", best["Version"]]
        if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0:
            best = package
    return best


def digest_of(release: str, name: str) -> str:
    """The sha256 that a Release file states for `name`; raises BuildError. Pure."""
    section = release.partition("SHA256:\n")[2]
    match = re.search(rf"^ ([0-9a-f]{{64}}) +\d+ {re.escape(name)}$", section, re.MULTILINE)
    if not match:
        raise BuildError(f"the repository's Release states no sha256 of {name}")
    return match[1]


@dataclass(frozen=True)
class FetchedPackages:
    """The newest Kubernetes packages of the line, with the repository's own signed index."""

    url: str = PACKAGES_URL
    name: str = "packages"
    needs: Sequence[Recipe] = field(default=())

    def inputs(self) -> bytes:
        """Where from, and which."""
        return json.dumps(["upstream", self.url, PACKAGES]).encode()

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        """Fetch index and packages unchanged, each checked against what vouches for it; raises BuildError."""
        folder = into / REPOSITORY
        folder.mkdir(parents=True)
        for name in ("Release", "InRelease", "Release.gpg", "Release.key"):
            (folder / name).write_bytes(fetch(self.url + name))
        release = (folder / "Release").read_text()
        index = checked(self.url + "Packages", fetch(self.url + "Packages"), digest_of(release, "Packages"))
        (folder / "Packages").write_bytes(index)
        listed = stanzas(index.decode())
        for name in PACKAGES:
            package = newest(listed, name)
            url = self.url + package["Filename"].removeprefix("./")
            target = (folder / package["Filename"]).resolve()
            if not target.is_relative_to(folder.resolve()):
                raise BuildError(f"the repository's index names a file outside of it: {package['Filename']}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(checked(url, fetch(url), package["SHA256"]))
            progress(f"fetched {name} {package['Version']}")
            if name == "kubeadm":
                (into / "kubeadm.deb").symlink_to(target.relative_to(into.resolve()))


@dataclass(frozen=True)
class FetchedManifests:
    """The manifests; they must be those that the environments pin."""

    urls: Mapping[str, str] = field(default_factory=lambda: dict(MANIFEST_URLS))
    name: str = "manifests"
    needs: Sequence[Recipe] = field(default=())

    def inputs(self) -> bytes:
        """Where from, and what they must be."""
        return json.dumps(["upstream", dict(self.urls), pinned()]).encode()

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        """Fetch and check each."""
        for name, url in self.urls.items():
            (into / name).write_bytes(checked(url, fetch(url), pinned()[name]))


@dataclass(frozen=True)
class FetchedLicences:
    """The licence of each project whose packages, images or manifests are fetched.

    What else is in an image lies there with its own: it is served as it came.
    """

    url: str = LICENCE_URL
    name: str = "projects"
    needs: Sequence[Recipe] = field(default=())

    def inputs(self) -> bytes:
        """Where from, and whose."""
        return json.dumps(["upstream", self.url, LICENCES]).encode()

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        """Fetch each into a folder of its project's name; raises BuildError."""
        for path in LICENCES:
            owner, project, _, file = path.split("/")
            folder = into / "licences" / f"{owner}_{project}"
            folder.mkdir(parents=True)
            (folder / file).write_bytes(fetch(self.url.format(path)))


def pinned() -> dict[str, str]:
    """The digests of the manifests by the names that the lab's environment fetches them under."""
    environment = load(find("lab"))
    manifests = (environment.metallb.manifest, environment.kubernetes.cni.manifest)
    return {str(manifest.url).rpartition("/")[2]: manifest.sha256 for manifest in manifests}


@dataclass(frozen=True)
class FetchedImages:
    """Every image, copied into a registry's storage; Kubernetes' own are those that the fetched kubeadm wants."""

    kubernetes: str = KUBERNETES_REGISTRY
    others: Mapping[str, str] = field(default_factory=lambda: dict(REGISTRIES))
    insecure: bool = False
    name: str = "images"
    needs: Sequence[Recipe] = (FetchedPackages(),)

    def inputs(self) -> bytes:
        """Where from, and which besides Kubernetes' own."""
        return json.dumps(["upstream", self.kubernetes, dict(self.others), self._besides()]).encode()

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        """Copy each image for this architecture."""
        wanted = [*kubeadm_images(made["packages"] / "kubeadm.deb", into / "kubeadm"), *self._besides()]
        with registry(into / "registry") as address:
            for image in wanted:
                host = next((h for prefix, h in self.others.items() if image.startswith(prefix)), self.kubernetes)
                copy(f"{host}/{image}", f"{address}/{image}", insecure=self.insecure)
                progress(f"copied {image}")

    def _besides(self) -> list[str]:
        prefixes = (*self.others, "e2e-test-images/")
        return [f"{image.name}:{image.tag}" for image in IMAGES if image.name.startswith(prefixes)]


def copy(source: str, destination: str, *, insecure: bool = False) -> None:
    """Copy one image between registries; the destination is ours, on loopback. Raises BuildError."""
    options = ["--dest-tls-verify=false", *(["--src-tls-verify=false"] if insecure else [])]
    run(
        [
            "skopeo",
            "--insecure-policy",
            "copy",
            "--quiet",
            "--retry-times=4",
            *options,
            f"docker://{source}",
            f"docker://{destination}",
        ]
    )


def kubeadm_images(package: Path, work: Path) -> list[str]:
    """Names and tags of the images that the kubeadm in `package` uses, without their registry's host."""
    run(["dpkg-deb", "--extract", package, work])
    kubeadm = work / "usr/bin/kubeadm"
    version = run([kubeadm, "version", "-o", "short"]).strip()
    listed = run([kubeadm, "config", "images", "list", "--kubernetes-version", version])
    shutil.rmtree(work)
    return [line.partition("/")[2] for line in listed.split()]
