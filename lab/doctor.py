"""Can this machine run the lab? Each thing it lacks is one sentence with what to do."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab.cgroup import hierarchies
from lab.paths import Paths

# Debian 12's package for each command; Go must be newer than Debian's.
COMMANDS = {
    "lxc-start": "lxc",
    "lxcfs": "lxcfs",
    "docker-registry": "docker-registry",
    "mmdebstrap": "mmdebstrap",
    "skopeo": "skopeo",
    "tinyproxy": "tinyproxy-bin",
    "umoci": "umoci",
    "dpkg-deb": "dpkg",
    "gpg": "gpg",
    "mke2fs": "e2fsprogs",
    "ip": "iproute2",
    "iptables": "iptables",
    "losetup": "mount",
    "nsenter": "util-linux",
}
GO_LEAST = (1, 22)
FILE_SYSTEMS = ("overlay", "ext4", "fuse")
LINK_KINDS = ("veth", "bridge", "vxlan")
NETFILTER = {"/proc/sys/net/bridge/bridge-nf-call-iptables": "br_netfilter"}
CONTROLLERS = ("cpu", "cpuset", "memory", "devices", "freezer", "pids")
# Measured: the whole target takes 3.7 GiB; beside the machine's own needs.
MEMORY_LEAST_MIB = 5 * 1024
# Measured: building everything takes 8 GiB, Go's own caches included.
CACHE_LEAST_MIB = 12 * 1024
# Measured: the disks of the whole target take 12 GiB. A snapshot of all of them takes as much again.
STATE_LEAST_MIB = 16 * 1024


@dataclass(frozen=True)
class Facts:
    """What was found on the machine; sizes in MiB, `go` None when there is none."""

    is_root: bool
    commands: frozenset[str]
    go: tuple[int, int] | None
    file_systems: frozenset[str]
    link_kinds: frozenset[str]
    devices: frozenset[str]
    netfilter: frozenset[str]
    controllers: frozenset[str]
    memory_free_mib: int
    state_free_mib: int
    cache_free_mib: int
    same_disk: bool
    content_built: bool
    state: str = "/var/lib/haproof-lab"
    cache: str = "~/.cache/haproof"


def misses(facts: Facts) -> list[str]:
    """Name what is missing, one sentence each; an empty list means the lab can run."""
    found = []
    if not facts.is_root:
        found.append("The lab makes network namespaces and mounts, so it needs root: run this with sudo.")
    packages = sorted({COMMANDS[name] for name in COMMANDS if name not in facts.commands})
    if packages:
        found.append(f"Programs are missing: install them with `apt-get install {' '.join(packages)}`.")
    if not facts.content_built and (facts.go is None or facts.go < GO_LEAST):
        have = "none" if facts.go is None else f"{facts.go[0]}.{facts.go[1]}"
        found.append(
            f"Building Kubernetes needs Go {GO_LEAST[0]}.{GO_LEAST[1]} or newer and {have} is in PATH: install a "
            "newer one from go.dev or Debian's backports."
        )
    found += _kernel_misses(facts)
    found += _size_misses(facts)
    return found


def _kernel_misses(facts: Facts) -> list[str]:
    found = []
    module = "load it with `modprobe {0}`, or boot a kernel that has it"
    # Only root can make links, and so see which there are.
    for name in (*FILE_SYSTEMS, *(LINK_KINDS if facts.is_root else ())):
        if name not in facts.file_systems | facts.link_kinds:
            found.append(f"The kernel has no {name}: {module.format(name)}.")
    for name in NETFILTER.values():
        if name not in facts.netfilter:
            found.append(f"The kernel has no {name}, without which Services do not work: {module.format(name)}.")
    if "nf_tables" not in facts.netfilter:
        found.append(f"The kernel has no nf_tables, the packet filter of kube-proxy: {module.format('nf_tables')}.")
    for device in ("/dev/fuse", "/dev/loop-control", "/dev/kmsg"):
        if device not in facts.devices:
            found.append(f"{device} is missing: the lab cannot run inside this container or sandbox.")
    lacking = [name for name in CONTROLLERS if name not in facts.controllers]
    if lacking:
        found.append(
            f"The cgroup controllers {', '.join(lacking)} are not mounted below /sys/fs/cgroup: start the machine "
            "with systemd, or mount them."
        )
    return found


def _size_misses(facts: Facts) -> list[str]:
    found = []
    if facts.memory_free_mib < MEMORY_LEAST_MIB:
        found.append(
            f"{facts.memory_free_mib} MiB of memory are free and the target needs {MEMORY_LEAST_MIB}: end other "
            "programs or use a bigger machine."
        )
    cache_needed = 0 if facts.content_built else CACHE_LEAST_MIB
    needs = [(facts.state, facts.state_free_mib, STATE_LEAST_MIB), (facts.cache, facts.cache_free_mib, cache_needed)]
    if facts.same_disk:
        both = STATE_LEAST_MIB + cache_needed
        needs = [(f"{facts.state} and {facts.cache} (one file system)", facts.state_free_mib, both)]
    for where, free_mib, needed_mib in needs:
        if free_mib < needed_mib:
            found.append(
                f"{free_mib} MiB are free for {where} and {needed_mib} are needed: make room, or set "
                "HAPROOF_LAB_STATE and XDG_CACHE_HOME to directories on a bigger disk."
            )
    return found


def parse_go_version(text: str) -> tuple[int, int] | None:
    """Read major and minor out of what `go env GOVERSION` says; None when it says something else."""
    match = re.search(r"\bgo(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def parse_available_mib(meminfo: str) -> int:
    """Read MemAvailable, in MiB, out of the text of /proc/meminfo (proc(5))."""
    values: Mapping[str, str] = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    return int(values["MemAvailable"].split()[0]) // 1024


def examine(paths: Paths, content_built: bool) -> Facts:
    """Look at this machine. `content_built` says that the mirror's content is in the cache already."""
    state, cache = _existing(paths.state), _existing(paths.cache)
    return Facts(
        is_root=os.geteuid() == 0,
        commands=frozenset(name for name in COMMANDS if shutil.which(name)),
        go=parse_go_version(_output("go", "env", "GOVERSION")),
        file_systems=frozenset(name for name in FILE_SYSTEMS if _has_file_system(name)),
        link_kinds=frozenset(name for name in LINK_KINDS if _has_link_kind(name)),
        devices=frozenset(str(path) for path in Path("/dev").iterdir()),
        netfilter=_netfilter(),
        controllers=_controllers(),
        memory_free_mib=parse_available_mib(Path("/proc/meminfo").read_text()),
        state_free_mib=shutil.disk_usage(state).free // 2**20,
        cache_free_mib=shutil.disk_usage(cache).free // 2**20,
        same_disk=state.stat().st_dev == cache.stat().st_dev,
        content_built=content_built,
        state=str(paths.state),
        cache=str(paths.cache),
    )


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _output(*argv: str) -> str:
    with suppress(FileNotFoundError):
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    return ""


def _load(module: str) -> None:
    """Load a module where the kernel has modules; whether that helped is seen by looking again."""
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "--quiet", module], capture_output=True, check=False)


def _has_file_system(name: str) -> bool:
    def listed() -> bool:
        return any(line.split()[-1] == name for line in Path("/proc/filesystems").read_text().splitlines())

    if not listed():
        _load(name)
    return listed()


def _has_link_kind(kind: str) -> bool:
    """Make one in a network namespace of its own, which is the only sure way to know."""
    extra = {"veth": ["peer", "name", "probe1"], "vxlan": ["id", "1", "dstport", "4789"]}.get(kind, [])
    argv = ["unshare", "--net", "ip", "link", "add", "probe0", "type", kind, *extra]
    with suppress(FileNotFoundError):
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0
    return False


def _netfilter() -> frozenset[str]:
    found = set()
    for file, module in NETFILTER.items():
        if not Path(file).exists():
            _load(module)
        if Path(file).exists():
            found.add(module)
    _load("nf_tables")
    with Path("/proc/kallsyms").open() as symbols:
        if any(" nft_register_chain_type" in line for line in symbols):
            found.add("nf_tables")
    return frozenset(found)


def _controllers() -> frozenset[str]:
    found: set[str] = set()
    for hierarchy in hierarchies():
        found |= hierarchy.controllers
        if hierarchy.unified:
            available = (hierarchy.path / "cgroup.controllers").read_text().split()
            # cgroup v2 has the freezer built in, and devices as BPF programs.
            found |= {*available, *(("freezer", "devices") if available else ())}
    return frozenset(found)
