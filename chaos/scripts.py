"""What faults do on a machine, as scripts of its own shell, each beside what takes it back. Pure."""

from collections.abc import Callable, Iterable, Mapping

from environments.model import Environment
from provisioning.ndb import DATA_DIRECTORY
from provisioning.tunnel import UNIT as CONNECTOR

# Processes by the unit that runs them; of several units the first that the machine has.
UNITS: Mapping[str, str] = {
    "kubelet": "kubelet",
    "containerd": "containerd",
    "ndbmtd": "ndbmtd",
    "ndb_mgmd": "ndb_mgmd",
    "mysqld": "mysql",
    "NFS server": "nfs-server nfs-ganesha",
    "connector": CONNECTOR,
}
# Processes by the container that they run in.
CONTAINERS = (
    "kube-apiserver",
    "etcd",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kube-flannel",
    "speaker",
    "coredns",
    "wordpress",
)
STATIC_PODS = CONTAINERS[:4]
DIRECTORIES: Mapping[str, Callable[[Environment], str]] = {
    "/var": lambda _: "/var",
    "/var/log": lambda _: "/var/log",
    "database directory": lambda _: DATA_DIRECTORY,
    "export": lambda environment: environment.nfs.export,
}
KEPT = "/var/lib/haproof"  # outlives a reboot, as what is moved there must
LOCK = "/run/haproof.lock"
FULL = ".haproof-full"
INODES_MAX = 1_000_000  # more cannot be made in the time of a command: 25 µs each on two busy processors

NEEDS_NFT = "command -v nft >/dev/null || echo 'nft is not installed on it'"
# In the inet family ahead of everything, what is forwarded to Pods included; one table, so that one line heals.
UNFILTER = "nft delete table inet haproof 2>/dev/null || true"
BUSY = (
    "systemd-run --quiet --collect --unit=haproof-busy "
    "sh -c 'for i in $(seq $(nproc)); do (while :; do :; done) & done; wait'"
)
IDLE = "systemctl stop haproof-busy.service 2>/dev/null || true"
MEMORY = "/run/haproof-memory"
MEMORY_TAKEN = (
    f"kib=$(awk '/^MemAvailable/ {{ print int($2 * 0.8) }}' /proc/meminfo); mkdir -p {MEMORY}; "
    f"mount -t tmpfs -o size=${{kib}}k haproof {MEMORY}; "
    f"dd if=/dev/zero of={MEMORY}/full bs=1M status=none 2>/dev/null || true"
)
MEMORY_FREED = f"umount {MEMORY} 2>/dev/null || true"
# A container's processors and memory are its host's, unless it has a bound of its own (cgroup v2, cpu.max, memory.max).
NEEDS_PROCESSORS, NEEDS_MEMORY = (
    "! systemd-detect-virt --container --quiet || "
    f'grep -qv ^max /sys/fs/cgroup/{bound} 2>/dev/null || echo "its {what} its host\'s, which would be {then} as well"'
    for bound, what, then in (("cpu.max", "processors are", "busy"), ("memory.max", "memory is", "full"))
)
# What of a fault is still there after it was taken back: a line, or none.
STILL_FILTERED = "! nft list table inet haproof >/dev/null 2>&1 || echo 'packets are still dropped'"
STILL_BUSY = "! systemctl is-active --quiet haproof-busy.service || echo 'its processors are still busy'"
STILL_TAKEN = f"! mountpoint -q {MEMORY} || echo 'its memory is still taken'"


def apart(script: str) -> str:
    """A script that waits for the one before it: whoever began that may be gone, and it goes on."""
    return f"exec 9>{LOCK}; flock 9; {script}"


def expiring(slug: str, expires_s: float, breaks: str) -> str:
    """A script that first takes what mends from its standard input and sets a timer to it, then breaks.

    The timer counts the machine's monotonic clock: nobody steps that one.
    """
    unit = f"haproof-{slug}"
    return (
        f"set -e; mkdir -p {KEPT}; cat > {KEPT}/{slug}.sh; {forget(slug)}; "
        f"systemd-run --quiet --collect --unit={unit} --on-active={expires_s:.0f}s --timer-property=AccuracySec=1s "
        f"sh {KEPT}/{slug}.sh >/dev/null; {breaks}"
    )


def forget(slug: str) -> str:
    """The timer is needed no more."""
    return f"systemctl stop haproof-{slug}.timer 2>/dev/null || true"


def waiting(slug: str) -> str:
    """Complains while the timer still waits: what mends has not come to its end."""
    return f"! systemctl is-active --quiet haproof-{slug}.timer || echo 'the timer that heals it is still set'"


def filtered(rule: str) -> str:
    """Packets that come in from outside the machine meet `rule` first."""
    return (
        f"{UNFILTER}; nft add table inet haproof; "
        "nft add chain inet haproof inward '{ type filter hook prerouting priority -450; }'; "
        "nft add rule inet haproof inward iifname lo accept; "
        f"nft add rule inet haproof inward '{rule}'"
    )


def deaf_to(macs: Iterable[str]) -> str:
    """The rule that drops what comes from these cards; by card, for Pods have addresses of their own."""
    return f"ether saddr {{ {', '.join(macs)} }} drop"


def _unit(names: str) -> str:
    """Shell that leaves in `unit` the first of the named units that the machine has."""
    return f'unit=; for u in {names}; do systemctl cat $u >/dev/null 2>&1 && {{ unit=$u; break; }}; done; test "$unit"'


def has_unit(names: str) -> str:
    """Complains where the machine has none of the units."""
    return f"({_unit(names)}) || echo 'it has no unit {names}'"


def unit_killed(names: str) -> str:
    """The main process is ended as a crash would."""
    return f"{_unit(names)}; systemctl kill --kill-who=main -s KILL $unit"


def stopped(names: str) -> str:
    """The unit is stopped in good order."""
    return f"{_unit(names)}; systemctl stop $unit"


def started(names: str) -> str:
    """The unit runs again, also after it failed too often."""
    return f"{_unit(names)}; systemctl reset-failed $unit 2>/dev/null || true; systemctl start $unit"


def not_running(names: str) -> str:
    """Complains where the unit neither runs nor is about to."""
    return (
        f"{_unit(names)}; state=$(systemctl is-active $unit); "
        'case "$state" in active|activating|reloading) ;; *) echo "$unit is $state" ;; esac'
    )


def has_container(name: str) -> str:
    """Complains where no such container runs."""
    return f"test -n \"$(crictl ps -q --name '^{name}$' 2>/dev/null)\" || echo 'no container {name} runs on it'"


def signalled(name: str, signal: str) -> str:
    """Every process of the container hears a signal; it has process ids of its own, by which they are found."""
    return (
        f"for c in $(crictl ps -q --name '^{name}$'); do "
        "pid=$(crictl inspect -o go-template --template '{{.info.pid}}' $c); "
        f"pkill -{signal} --ns $pid --nslist pid || true; done"
    )


def still_frozen(name: str) -> str:
    """Complains while a process of the container is stopped (state T)."""
    return (
        f"for c in $(crictl ps -q --name '^{name}$'); do "
        "pid=$(crictl inspect -o go-template --template '{{.info.pid}}' $c); "
        f"! pgrep --runstates T --ns $pid --nslist pid >/dev/null || echo 'processes of {name} are still frozen'; done"
    )


def manifest_away(name: str) -> str:
    """Kubelet stops a static Pod whose manifest is gone."""
    return f"mkdir -p {KEPT}; mv /etc/kubernetes/manifests/{name}.yaml {KEPT}/"


def manifest_back(name: str) -> str:
    """Kubelet starts it again."""
    return f"test ! -e {KEPT}/{name}.yaml || mv {KEPT}/{name}.yaml /etc/kubernetes/manifests/"


def still_there(path: str, what: str) -> str:
    """Complains while a file is there that should be gone."""
    return f"test ! -e {path} || echo '{what}'"


def bounded(directory: str) -> str:
    """Complains where the directory's file system is not the machine's own to fill: an overlay, or a part of another.

    A machine that is a container has folders of its host mounted into it: these do not begin at their disk's root.
    """
    return (
        f'case "$(findmnt -n -r -o FSTYPE,FSROOT -T {directory} | tail -n 1)" in '
        f'"") echo "it cannot be told which disk {directory} lies on" ;; '
        f'overlay*|*" /"?*) echo "{directory} lies on a disk of its host, which would be filled as well" ;; esac'
    )


def filled(directory: str) -> str:
    """Not a block is left, for root either."""
    return (
        f"free=$(stat -f -c %f {directory}); size=$(stat -f -c %S {directory}); "
        f"fallocate -l $((free * size)) {directory}/{FULL} 2>/dev/null || true; "
        f"dd if=/dev/zero of={directory}/{FULL} bs=1M oflag=append conv=notrunc status=none 2>/dev/null || true"
    )


def emptied(directory: str) -> str:
    """What filled it is gone."""
    return f"rm -f {directory}/{FULL}"


def few_inodes(directory: str) -> str:
    """Complains where inodes do not run out in a drill's time, or are not the machine's own."""
    return (
        f"{bounded(directory)}; free=$(stat -f -c %d {directory}); "
        f'test "$free" -gt 0 -a "$free" -le {INODES_MAX} || '
        f'echo "the file system of {directory} has $free free inodes: none that run out in a drill\'s time"'
    )


def inodes_taken(directory: str) -> str:
    """Not an inode is left."""
    return (
        f"mkdir -p {directory}/{FULL}.d; free=$(stat -f -c %d {directory}); cd {directory}/{FULL}.d; "
        "seq $free | xargs touch 2>/dev/null || true"
    )


def inodes_freed(directory: str) -> str:
    """The files that took them are gone."""
    return f"rm -rf {directory}/{FULL}.d"
