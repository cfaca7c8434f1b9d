"""Kubernetes nodes from inside: operating system, kernel, container runtime, packages."""

import json
import re
from collections.abc import Iterable, Mapping
from posixpath import basename, dirname
from typing import Any

import pytest
from kubernetes import client
from pytest_bdd import then

from certificate.verdict import NotExercised
from environments.model import Environment, Machine, Role
from provisioning import ndb
from provisioning.cluster import Cluster
from provisioning.session import Session
from provisioning.tunnel import UNIT as CONNECTOR
from steps.complaints import none_of, unless
from steps.guests import Guests

# What a guest sees of its memory is less by what its kernel and firmware keep: 3 % at 4 GiB on KVM, more below.
MEMORY_SEEN_MIN = 0.9
# Not all of a disk is for files: ext4's inodes take 2 %, its journal up to 1 GiB, what boots its own partitions.
DISK_SEEN_MIN = 0.9
SERVICES = ("containerd", "kubelet")
# What each other machine is there for, by unit; of several, those that it has.
UNITS: Mapping[Role, tuple[str, ...]] = {
    **{role: (unit,) for role, unit in ndb.UNITS.items()},
    Role.NFS: ("nfs-server", "nfs-ganesha"),
    Role.TUNNEL: (CONNECTOR,),
}
HELD = ("kubelet", "kubeadm", "kubectl")
# The document's own three, with the name that /proc and sysctl.d files know them by.
SYSCTLS = {
    "net.bridge.bridge-nf-call-iptables": "1",
    "net.bridge.bridge-nf-call-ip6tables": "1",
    "net.ipv4.ip_forward": "1",
}
MODULES = {"overlay", "br_netfilter"}
# Where systemd reads settings from, the folders whose files win over namesakes first (sysctl.d(5), modules-load.d(5)).
FOLDERS = ("/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib")
FILE = re.compile(r"^==> (.+) <==$")


def files_script(folder: str) -> str:
    """A command that prints every readable configuration file of systemd's `folder`, each below its path."""
    patterns = " ".join(f"{base}/{folder}/*.conf" for base in FOLDERS)
    return f'for f in {patterns}; do [ -r "$f" ] && [ -f "$f" ] && echo "==> $f <==" && cat "$f" && echo; done; true'


def effective_lines(text: str) -> list[str]:
    """The lines that count of what `files_script` printed, in the order of systemd: by name, one file a name. Pure."""
    files: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := FILE.match(line):
            files[match[1]] = []
        elif files and line.strip() and line.strip()[0] not in "#;":
            files[next(reversed(files))].append(line.strip())
    chosen: dict[str, str] = {}
    for path in sorted(files, key=lambda path: FOLDERS.index(dirname(dirname(path)))):
        chosen.setdefault(basename(path), path)
    return [line for name in sorted(chosen) for line in files[chosen[name]]]


def settings(lines: Iterable[str]) -> dict[str, str]:
    """The last value of each key, spelled with dots. Pure."""
    found = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if equals:
            key = key.strip().removeprefix("-")
            first = re.search(r"[./]", key)
            if first and first[0] == "/":  # then slashes part the words, and dots belong to them
                key = key.translate(str.maketrans("./", "/."))
            found[key] = value.strip()
    return found


def debian_release(host: Any) -> list[str]:
    """Complaints of a guest that is not Debian 12."""
    text = host.file("/etc/os-release").content_string
    fields = {key: value.strip('"') for key, _, value in (line.partition("=") for line in text.splitlines())}
    actual = f"{fields.get('ID')} {fields.get('VERSION_ID')}"
    return unless(actual == "debian 12", f"expected debian 12, found {actual}")


def swap(host: Any) -> list[str]:
    """Complaints about swap that is active, or would be after a boot."""
    answer = host.check_output(
        "tail -n +2 /proc/swaps | sed 's/^/active /'; "
        "grep -E '^[^#]+[[:space:]]swap[[:space:]]' /etc/fstab | sed 's/^/in fstab /'; "
        "systemctl is-enabled swap.target 2>/dev/null | grep -q masked || "
        "systemctl list-unit-files --type=swap --state=enabled,static,generated --no-legend | sed 's/^/unit /'; true"
    )
    return [f"expected no swap, found: {' '.join(line.split())}" for line in answer.splitlines()]


def modules(host: Any) -> list[str]:
    """Complaints about kernel features that are missing now, or not asked for at boot.

    A kernel may have them built in: so what they bring is looked for, not their names among the modules.
    """
    now, _, boot = host.check_output(
        "grep -qw overlay /proc/filesystems && echo overlay; "
        "test -e /proc/sys/net/bridge/bridge-nf-call-iptables && echo br_netfilter; echo '== boot =='; "
        f"{files_script('modules-load.d')}"
    ).partition("== boot ==")
    found, at_boot = set(now.split()), set(effective_lines(boot))
    return [
        *(f"expected the kernel to offer {name}, and it does not" for name in sorted(MODULES - found)),
        *(f"expected {name} among the modules loaded at boot, and it is not" for name in sorted(MODULES - at_boot)),
    ]


def sysctls(host: Any) -> list[str]:
    """Complaints about kernel settings that are not in force, or would not be after a boot."""
    now, _, boot = host.check_output(
        "for k in "
        + " ".join(SYSCTLS)
        + '; do echo "$k = $(cat /proc/sys/$(echo $k | tr . /) 2>/dev/null)"; done; echo "== boot =="; '
        + files_script("sysctl.d")
    ).partition("== boot ==")
    found, at_boot = settings(now.splitlines()), settings(effective_lines(boot))
    return [
        complaint
        for key, value in SYSCTLS.items()
        for complaint in (
            *unless(found.get(key) == value, f"expected {key} = {value} now, found {found.get(key)!r}"),
            *unless(at_boot.get(key) == value, f"expected {key} = {value} at boot, found {at_boot.get(key)!r}"),
        )
    ]


def states(host: Any, units: Iterable[str]) -> dict[str, list[str]]:
    """Of those of `units` that the guest has: whether each is active, and whether it is enabled, in systemd's words."""
    answer = host.check_output(
        f"for s in {' '.join(units)}; do systemctl cat $s >/dev/null 2>&1 || continue; "
        'echo "$s $(systemctl is-active $s 2>/dev/null) $(systemctl is-enabled $s 2>/dev/null)"; done'
    )
    return {name: told for name, *told in (line.split() for line in answer.splitlines())}


def services(host: Any) -> list[str]:
    """Complaints about services of a node that do not run, or would not be started at boot."""
    found = states(host, SERVICES)
    return [complaint for name in SERVICES for complaint in not_at_work(name, found.get(name, []))]


def not_at_work(unit: str, told: list[str]) -> list[str]:
    """What is wrong with a unit, given its two states. Pure."""
    return unless(
        told == ["active", "enabled"],
        f"expected {unit} active and enabled, found {' and '.join(told) or 'no such unit'}",
    )


def order(host: Any) -> list[str]:
    """Complaints where a boot may start the kubelet before its container runtime."""
    before = host.check_output("systemctl show kubelet --property After --value").split()
    return unless("containerd.service" in before, f"expected kubelet after containerd, found it after {before}")


def started_once(host: Any) -> list[str]:
    """Complaints about a kubelet that systemd has started again since the machine has, for it had ended by itself."""
    again = int(host.check_output("systemctl show kubelet --property NRestarts --value"))
    return unless(again == 0, f"expected a kubelet that was started once, found it started again {again} times")


def held(host: Any) -> list[str]:
    """Complaints about packages that the next upgrade may change."""
    found = host.check_output("apt-mark showhold").split()
    return [f"expected {name} to be held, and it is not" for name in HELD if name not in found]


def kubernetes_versions(host: Any) -> dict[str, str]:
    """What each program says of its version, as `v1.30.4`."""
    answer = host.check_output("kubelet --version; kubeadm version -o short; kubectl version --client -o json")
    kubelet, kubeadm, kubectl = answer.split("\n", 2)
    return {
        "kubelet": kubelet.split()[-1],
        "kubeadm": kubeadm.strip(),
        "kubectl": str(json.loads(kubectl)["clientVersion"]["gitVersion"]),
    }


def in_container(host: Any) -> bool:
    """Whether the guest is a system container: it then sees things of the host that it runs on."""
    return bool(host.run("systemd-detect-virt --quiet --container").rc == 0)


def memory_seen(host: Any) -> tuple[float, bool]:
    """MiB of memory that the guest sees, and whether it is a container; raises ValueError where it tells nothing."""
    kib = re.search(r"^MemTotal:\s+(\d+) kB", host.file("/proc/meminfo").content_string, re.MULTILINE)
    if not kib:
        raise ValueError("/proc/meminfo names no MemTotal")
    return int(kib[1]) / 1024, in_container(host)


def cores_seen(host: Any) -> tuple[int, bool]:
    """Cores that the guest sees, and whether it is a container."""
    return int(host.check_output("nproc --all")), in_container(host)


def disk_seen(host: Any) -> float:
    """GiB that the file systems on the guest's own disks hold, each once however often it is mounted."""
    answer = host.check_output("df --local --block-size=1 --output=source,size")
    sizes = {source: int(size) for source, size in (line.rsplit(maxsplit=1) for line in answer.splitlines()[1:])}
    return sum(size for source, size in sizes.items() if source.startswith("/dev/")) / 2**30


def unseen_memory(machine: Machine, seen_mib: float) -> list[str]:
    """What is wrong with the memory that a guest sees. Pure."""
    enough = machine.memory_mib * MEMORY_SEEN_MIN <= seen_mib <= machine.memory_mib
    return unless(enough, f"expected about {machine.memory_mib} MiB, found {seen_mib:.0f}")


def unless_contained(complaints: dict[str, list[str]], contained: set[str], what: str) -> None:
    """Fail with the complaints of machines; those of containers alone mean that nothing can be said."""
    none_of({name: [] if name in contained else lines for name, lines in complaints.items()})
    if theirs := [f"{name}: {line}" for name, lines in complaints.items() for line in lines]:
        raise NotExercised(f"guests that are containers see the {what} of the host they run on ({'; '.join(theirs)})")


@pytest.fixture(scope="session")
def guests(target: Session) -> Guests:
    """The operating systems of the target's machines."""
    return Guests(target.shell)


@then("each of them runs Debian 12")
def each_runs_debian(machines: tuple[Machine, ...], guests: Guests) -> None:
    """By its os-release."""
    none_of(guests.ask(machines, debian_release))


@then("each of them sees its declared memory")
def each_sees_its_memory(machines: tuple[Machine, ...], guests: Guests) -> None:
    """By /proc/meminfo, which a container may share with its host."""
    seen = guests.ask(machines, memory_seen)
    complaints = {machine.name: unseen_memory(machine, seen[machine.name][0]) for machine in machines}
    unless_contained(complaints, {name for name, (_, contained) in seen.items() if contained}, "memory")


@then("each of them sees its declared cores")
def each_sees_its_cores(machines: tuple[Machine, ...], guests: Guests) -> None:
    """By the processors that its kernel has, which a container shares with its host."""
    seen = guests.ask(machines, cores_seen)
    complaints = {
        machine.name: unless(
            seen[machine.name][0] == machine.cores, f"expected {machine.cores} cores, found {seen[machine.name][0]}"
        )
        for machine in machines
    }
    unless_contained(complaints, {name for name, (_, contained) in seen.items() if contained}, "cores")


@then("each of them sees its declared disk")
def each_sees_its_disk(machines: tuple[Machine, ...], guests: Guests) -> None:
    """By its file systems: a disk that grew on the hypervisor alone has room for nobody."""
    seen = guests.ask(machines, disk_seen)
    none_of(
        {
            machine.name: unless(
                seen[machine.name] >= machine.disk_gib * DISK_SEEN_MIN,
                f"expected file systems of about {machine.disk_gib} GiB, found {seen[machine.name]:.1f}",
            )
            for machine in machines
        }
    )


@then("none of them has swap, now or at the next boot")
def none_has_swap(machines: tuple[Machine, ...], guests: Guests) -> None:
    """Active areas, fstab, and units that no mask holds back."""
    none_of(guests.ask(machines, swap))


@then("each of them has the modules of container networking, now and at the next boot")
def each_has_modules(machines: tuple[Machine, ...], guests: Guests) -> None:
    """The document's two."""
    none_of(guests.ask(machines, modules))


@then("each of them has the settings of container networking, now and at the next boot")
def each_has_sysctls(machines: tuple[Machine, ...], guests: Guests) -> None:
    """The document's three."""
    none_of(guests.ask(machines, sysctls))


@then("containerd and the kubelet run on each of them, and start at boot")
def each_has_services(machines: tuple[Machine, ...], guests: Guests) -> None:
    """By systemd."""
    none_of(guests.ask(machines, services))


@then("the kubelet of each of them comes after its container runtime")
def each_is_ordered(machines: tuple[Machine, ...], guests: Guests) -> None:
    """By the order that systemd starts units in: a kubelet that comes first ends, and is tried again only later."""
    none_of(guests.ask(machines, order))


@then("the kubelet of each of them was started once")
def each_started_once(machines: tuple[Machine, ...], guests: Guests) -> None:
    """Ten seconds pass before systemd starts it again; of a master, the API waits for them."""
    none_of(guests.ask(machines, started_once))


@then("the service of each of them runs, and starts at boot")
def each_has_its_service(machines: tuple[Machine, ...], guests: Guests) -> None:
    """What the machine is there for, by systemd."""

    def complaints(host: Any, role: Role) -> list[str]:
        found = states(host, UNITS[role])
        if not found:
            return [f"expected a unit {' or '.join(UNITS[role])}, and there is none"]
        return [complaint for name, told in found.items() for complaint in not_at_work(name, told)]

    none_of({m.name: complaints(guests.host(m), m.role) for m in machines})


@then("kubelet, kubeadm and kubectl on each of them are held")
def each_holds_packages(machines: tuple[Machine, ...], guests: Guests) -> None:
    """By apt's marks."""
    none_of(guests.ask(machines, held))


@then("each of them still has all that was configured")
def each_is_configured(machines: tuple[Machine, ...], guests: Guests) -> None:
    """Everything that P12 names, at once."""
    questions = (swap, modules, sysctls, services, held)
    none_of(guests.ask(machines, lambda host: [line for question in questions for line in question(host)]))


def runtime_cgroup_driver(info: dict[str, Any]) -> str:
    """The cgroup driver that a running containerd uses, from what `crictl info` prints. Pure."""
    options = info.get("config", {}).get("containerd", {}).get("runtimes", {}).get("runc", {}).get("options") or {}
    return "systemd" if options.get("SystemdCgroup") is True else "cgroupfs"


@then("containerd and the kubelet on each of them use the systemd cgroup driver")
def one_cgroup_driver(machines: tuple[Machine, ...], guests: Guests, cluster: Cluster) -> None:
    """Both are asked while they run, not their files."""
    runtime = guests.ask(machines, lambda host: runtime_cgroup_driver(json.loads(host.check_output("crictl info"))))
    kubelets = {machine.name: kubelet_configuration(cluster, machine.name)["cgroupDriver"] for machine in machines}
    none_of(
        {
            name: [
                *unless(driver == "systemd", f"expected containerd to use systemd, found {driver}"),
                *unless(kubelets[name] == driver, f"expected the kubelet to use {driver} too, found {kubelets[name]}"),
            ]
            for name, driver in runtime.items()
        }
    )


def kubelet_configuration(cluster: Cluster, node: str) -> dict[str, Any]:
    """What the kubelet of `node` runs with, defaults included; raises ApiException."""
    answer = cluster.api.call_api(
        f"/api/v1/nodes/{node}/proxy/configz",
        "GET",
        response_type="object",
        auth_settings=["BearerToken"],
        _return_http_data_only=True,
        _request_timeout=30,
    )
    return dict(answer["kubeletconfig"])


@then("they and the API server are one release of the declared version")
def one_release(machines: tuple[Machine, ...], guests: Guests, cluster: Cluster, environment: Environment) -> None:
    """Every program on every node says the release that the server says."""
    release = str(client.VersionApi(cluster.api).get_code(_request_timeout=30).git_version)
    stream = environment.kubernetes.version
    found = guests.ask(machines, kubernetes_versions)
    complaints = {
        name: [
            f"expected {program} {release} as the API server, found {version}"
            for program, version in programs.items()
            if version != release
        ]
        for name, programs in found.items()
    }
    complaints["API server"] = unless(
        release.startswith(f"v{stream}."), f"expected a release of {stream}, found {release}"
    )
    none_of(complaints)
