"""Container images made from files alone, in the storage of a registry."""

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lab.cache import BuildError, Progress, Recipe
from lab.mirror import apt, binaries, versions
from lab.mirror.bootstrap import bootstrap, keep_licences
from lab.mirror.command import bound, run
from lab.mirror.wordpress import WordPress
from provisioning.poll import DeadlineExceeded, poll

REGISTRY_START_TIMEOUT_S = 20


@dataclass(frozen=True)
class Image:
    """One image: `name:tag` below the registry, its files by target path, and how it starts.

    `programs` maps a path to a recipe and the name below its `bin/`; `base` is a recipe and a folder of its that
    everything else is put on; `options` are more of umoci's about the image's configuration.
    """

    name: str
    tag: str
    programs: Mapping[str, tuple[str, str]]
    entrypoint: Sequence[str] = ()
    base: tuple[str, str] | None = None
    options: Sequence[str] = ()


_V = f"v{versions.KUBERNETES}"
IMAGES = (
    *(
        Image(component, _V, {f"/usr/local/bin/{component}": ("kubernetes", component)})
        for component in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
    ),
    Image("kube-proxy", _V, {"/usr/local/bin/kube-proxy": ("kubernetes", "kube-proxy")}, base=("bases", "iptables")),
    Image(
        "etcd",
        f"{versions.ETCD}-0",
        {"/usr/local/bin/etcd": ("etcd", "etcd"), "/usr/local/bin/etcdctl": ("etcd", "etcdctl")},
    ),
    Image("coredns/coredns", f"v{versions.COREDNS}", {"/coredns": ("coredns", "coredns")}, ("/coredns",)),
    Image("pause", versions.PAUSE, {"/pause": ("pause", "pause")}, ("/pause",)),
    Image(
        "flannel/flannel",
        f"v{versions.FLANNEL}",
        {"/opt/bin/flanneld": ("flannel", "flanneld")},
        ("/opt/bin/flanneld",),
        base=("bases", "iptables"),
    ),
    Image(
        "flannel/flannel-cni-plugin",
        versions.FLANNEL_PLUGIN_TAG,
        {"/flannel": ("cni", "flannel")},
        base=("bases", "busybox"),
    ),
    Image("metallb/controller", f"v{versions.METALLB}", {"/controller": ("metallb", "controller")}, ("/controller",)),
    Image("metallb/speaker", f"v{versions.METALLB}", {"/speaker": ("metallb", "speaker")}, ("/speaker",)),
    Image("e2e-test-images/busybox", versions.BUSYBOX_TAG, {}, ("/bin/sh",), base=("bases", "busybox")),
    Image(
        "library/wordpress",
        "latest",
        {},
        ("docker-entrypoint.sh",),
        base=("wordpress", "root"),
        options=(
            *("--config.cmd", "apache2-foreground"),
            *("--config.workingdir", "/var/www/html"),
            *("--config.volume", "/var/www/html"),
            *("--config.exposedports", "80"),
            *("--config.stopsignal", "SIGWINCH"),  # apache2's own for: end when the requests at work have ended
        ),
    ),
)
BASES = {"iptables": ("busybox", "conntrack", "ipset", "iproute2", "iptables"), "busybox": ("busybox",)}
C_LIBRARY = Path("/usr/share/doc/libc6-dev/copyright")
PAUSE_SOURCE = Path(__file__).parent / "modules" / "pause" / "pause.c"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Pause:
    """The program that holds a Pod's namespaces."""

    name: str = "pause"
    needs: Sequence[Recipe] = field(default=())

    def inputs(self) -> bytes:
        """Its source."""
        return PAUSE_SOURCE.read_bytes()

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        """Compile it statically: the C library is part of it, and so is its licence."""
        (into / "bin").mkdir()
        (into / "licences/libc6").mkdir(parents=True)
        shutil.copyfile(C_LIBRARY, into / "licences/libc6/copyright")
        run(["gcc", "-Os", "-static", "-s", "-Wall", "-Werror", "-o", into / "bin/pause", PAUSE_SOURCE])


@dataclass(frozen=True)
class Bases:
    """Small Debian roots that programs are put on where they call others."""

    name: str = "bases"
    needs: Sequence[Recipe] = field(default=())

    def inputs(self) -> bytes:
        """Which packages."""
        suites = [source.suite for source in apt.sources(versions.DEBIAN)]
        return json.dumps([BASES, suites]).encode()

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        """Extract the packages without configuring them: nothing in an image runs a maintainer's script."""
        for name, packages in BASES.items():
            root = into / name
            bootstrap(root, ("base-files", *packages), variant="extract")
            settle(root)
            keep_licences(root, into / "licences")


def settle(root: Path) -> None:
    """Do what the packages' scripts would have: the merged /usr, busybox's names, iptables' alternative."""
    merge_usr(root)
    for waste in ("usr/share/man", "usr/share/locale", "usr/share/info", "var/lib/apt", "var/cache"):
        shutil.rmtree(root / waste, ignore_errors=True)
    for folder in ("etc", "run", "tmp", "var/run"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    present = {path.name for folder in ("bin", "sbin") for path in (root / "usr" / folder).iterdir()}
    for applet in run([root / "usr/bin/busybox", "--list"]).split():
        if applet not in present:
            (root / "usr/bin" / applet).symlink_to("busybox")
    if (root / "usr/sbin/xtables-nft-multi").exists():
        for name in ("iptables", "ip6tables"):
            for suffix in ("", "-save", "-restore"):
                link = root / "usr/sbin" / f"{name}{suffix}"
                link.unlink(missing_ok=True)
                link.symlink_to("xtables-nft-multi")


def merge_usr(root: Path) -> None:
    """Make /bin, /sbin, /lib and /lib64 links into /usr, as on an installed Debian 12."""
    for name in ("bin", "sbin", "lib", "lib64"):
        old, new = root / name, root / "usr" / name
        if old.is_dir() and not old.is_symlink():
            shutil.copytree(old, new, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(old)
        if new.is_dir() and not old.is_symlink():
            old.symlink_to(f"usr/{name}")


@dataclass(frozen=True)
class Images:
    """Every image, pushed into the file-system storage of a registry."""

    name: str = "images"
    needs: Sequence[Recipe] = (
        binaries.KUBERNETES,
        binaries.ETCD,
        binaries.COREDNS,
        binaries.FLANNEL,
        binaries.METALLB,
        binaries.CNI,
        Pause(),
        Bases(),
        WordPress(),
    )

    def inputs(self) -> bytes:
        """Every image's description."""
        described = [(i.name, i.tag, dict(i.programs), list(i.entrypoint), i.base, list(i.options)) for i in IMAGES]
        return json.dumps(described).encode()

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        """Make each image in an OCI layout and push it."""
        layout, storage = into / "layout", into / "registry"
        run(["umoci", "init", "--layout", layout])
        with registry(storage) as address:
            for image in IMAGES:
                self._make(image, layout, into, made)
                run(
                    [
                        "skopeo",
                        "--insecure-policy",
                        "copy",
                        "--quiet",
                        "--dest-tls-verify=false",
                        f"oci:{layout}:work",
                        f"docker://{address}/{image.name}:{image.tag}",
                    ]
                )
                run(["umoci", "remove", "--image", f"{layout}:work"])
                progress(f"pushed {image.name}:{image.tag}")
        shutil.rmtree(layout)

    def _make(self, image: Image, layout: Path, work: Path, made: Mapping[str, Path]) -> None:
        """An empty image, its base as one layer, its programs as another, its configuration."""
        target = f"{layout}:work"
        run(["umoci", "new", "--image", target])
        if image.base:
            recipe, folder = image.base
            run(["umoci", "insert", "--image", target, made[recipe] / folder, "/"])
        root = work / "root"
        for path, (recipe, program) in image.programs.items():
            destination = root / path.lstrip("/")
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made[recipe] / "bin" / program, destination)
            destination.chmod(0o755)
        if not image.base:
            for folder in ("etc", "run", "tmp"):
                (root / folder).mkdir(parents=True, exist_ok=True)
        if root.exists():
            root.chmod(0o755)
            run(["umoci", "insert", "--image", target, root, "/"])
            shutil.rmtree(root)
        options = ["--config.env", PATH, *image.options]
        for word in image.entrypoint:
            options += ["--config.entrypoint", word]
        run(["umoci", "config", "--image", target, *options])


def registry_config(storage: Path, address: str, *, read_only: bool) -> dict[str, object]:
    """The configuration of Debian's docker-registry. Pure."""
    maintenance = {"maintenance": {"readonly": {"enabled": True}}} if read_only else {}
    return {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "cache": {"blobdescriptor": "inmemory"}}
        | maintenance,
        "http": {"addr": address},
    }


@contextmanager
def registry(storage: Path) -> Iterator[str]:
    """A registry on loopback over `storage`, for as long as the block lasts; gives its address. Raises BuildError."""
    storage.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = storage.with_suffix(".json")  # JSON is YAML
    config.write_text(json.dumps(registry_config(storage, address, read_only=False)))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    with subprocess.Popen(
        bound(["docker-registry", "serve", config]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:

        def listening() -> bool:
            if process.poll() is not None:
                raise BuildError(
                    f"docker-registry ended at once: {process.stderr.read().decode()[-500:] if process.stderr else ''}"
                )
            with socket.socket() as attempt:
                host, _, port = address.partition(":")
                return attempt.connect_ex((host, int(port))) == 0

        try:
            poll("the registry answers", listening, timeout_s=REGISTRY_START_TIMEOUT_S, interval_s=0.1)
            yield address
        except DeadlineExceeded as error:
            raise BuildError(str(error)) from error
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(10)
    config.unlink()
