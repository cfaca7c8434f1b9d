"""The disk image that machines are cloned from: Debian 12 as its cloud image has it, fit for a container."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lab.nfs
from lab.cache import BuildError, Progress, Recipe
from lab.mirror import apt, versions
from lab.mirror.bootstrap import bootstrap, keep_licences
from lab.mirror.command import run

IMAGE = "debian-12-genericcloud-amd64.raw"
PACKAGES = (
    "ca-certificates",
    "curl",
    "dbus",
    "fuse3",
    "gnupg",
    "ifupdown",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "netbase",
    "nftables",
    "openssh-server",
    "openssl",
    "procps",
    "python3-fusepy",
    # Of the emulated cloudflared: Cloudflare's own needs no package either.
    "python3-h11",
    "python3-websockets",
    "sudo",
    "systemd",
    "systemd-sysv",
    "udev",
)
# They wait for hardware, a console or a network of the machine's own, none of which a container has.
MASKED_UNITS = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "networking.service",
    "systemd-udevd.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udev-trigger.service",
)
# Disks of the lab live as long as a test: what dpkg would flush need not outlive a power cut of the host.
DPKG_OPTIONS = ("force-unsafe-io", "path-exclude=/usr/share/man/*", "path-exclude=/usr/share/locale/*")
FILES = {
    "etc/apt/apt.conf.d/90haproof": (
        'Acquire::Languages "none";\nAcquire::Retries "3";\nAPT::Install-Recommends "true";\n'
    ),
    "etc/dpkg/dpkg.cfg.d/90haproof": "".join(f"{option}\n" for option in DPKG_OPTIONS),
    "etc/systemd/journald.conf.d/90haproof.conf": "[Journal]\nSystemMaxUse=64M\n",
    "etc/ssh/sshd_config.d/90haproof.conf": "UseDNS no\n",
    # In a scope of its own: as the kernel's client, it outlives the service that mounts, as kubelet.
    "usr/sbin/mount.nfs": (
        "#!/bin/sh\nexport PYTHONPATH=/usr/lib/haproof\n"
        "test -d /run/systemd/system && scope='systemd-run --quiet --scope --collect'\n"
        'exec $scope python3 -m nfs "$@"\n'
    ),
    "etc/fstab": "# The root file system is mounted by the hypervisor.\n",
    "etc/systemd/system/shared-mounts.service": (
        "[Unit]\n"
        "Description=Volumes that are mounted later are seen inside containers, as on a machine of its own\n"
        "DefaultDependencies=no\n"
        "Before=local-fs-pre.target\n"
        "[Service]\n"
        "Type=oneshot\n"
        "ExecStart=/bin/mount --make-rshared /\n"
        "[Install]\n"
        "WantedBy=sysinit.target\n"
    ),
}
NFS = Path(lab.nfs.__file__).parent
NFS_FILES = {f"usr/lib/haproof/nfs/{path.name}": path.read_text() for path in sorted(NFS.glob("*.py"))}
SETUP = """\
set -eu
# Set aside before the package comes that brings it: where the kernel has no NFS client, the real one mounts nothing.
dpkg-divert --quiet --local --no-rename --divert /sbin/mount.nfs.kernel --add /sbin/mount.nfs
chmod 755 /usr/sbin/mount.nfs
useradd --create-home --shell /bin/bash --password '*' debian
echo 'debian ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/90-debian
chmod 440 /etc/sudoers.d/90-debian
systemctl enable shared-mounts.service ssh.service
systemctl mask {masked}
rm -f /etc/ssh/ssh_host_* /etc/machine-id /var/lib/dbus/machine-id
: > /etc/machine-id
"""


@dataclass(frozen=True)
class Template:
    """The image as a raw ext4 file system, its checksum, and its packages' copyright files."""

    mirror: str
    name: str = "template"
    needs: Sequence[Recipe] = field(default=())

    def inputs(self) -> bytes:
        """What is in the image; not the archive's state of the day: prune to have a newer one."""
        suites = [(source.suite, source.components) for source in apt.sources(versions.DEBIAN)]
        return json.dumps([PACKAGES, MASKED_UNITS, FILES, NFS_FILES, SETUP, suites, self.mirror]).encode()

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        """Bootstrap from the machine's own apt sources, settle, and write as a file system image."""
        root, sources = into / "root", apt.sources(versions.DEBIAN)
        bootstrap(root, PACKAGES, variant="minbase", dpkg_options=DPKG_OPTIONS)
        progress("bootstrapped Debian")
        for path, text in (FILES | NFS_FILES).items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        served = [
            f"deb {self.mirror}{apt.path_of(source)} {source.suite} {' '.join(source.components)}" for source in sources
        ]
        (root / "etc/apt/sources.list").write_text("\n".join(served) + "\n")
        run(["chroot", root, "sh", "-c", SETUP.format(masked=" ".join(MASKED_UNITS))])
        shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
        keep_licences(root, into / "licences")
        self._image(root, into / IMAGE)
        digest = hashlib.sha512((into / IMAGE).read_bytes()).hexdigest()
        (into / "SHA512SUMS").write_text(f"{digest}  {IMAGE}\n")
        shutil.rmtree(root)

    def _image(self, root: Path, image: Path) -> None:
        """A file system a third larger than what is in it; it grows to the size of each machine's disk."""
        used_kib = int(run(["du", "-sk", root]).split()[0])
        if used_kib < 1024:
            raise BuildError(f"the bootstrapped root {root} is empty")
        # As of the large one that it grows to; with half as many inodes, so that they run out in a drill's time.
        blocks = ("-b", "4096", "-i", "32768", "-J", "size=64")
        run(["mke2fs", "-q", "-t", "ext4", *blocks, "-d", root, "-L", "root", image, f"{used_kib * 4 // 3 + 131072}k"])
