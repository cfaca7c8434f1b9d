"""What every Kubernetes node must be before kubeadm runs; the document's own steps, in its order."""

from io import StringIO
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pyinfra import host
from pyinfra.operations import apt, files, server, systemd

from provisioning.nodes import facts
from provisioning.nodes.job import Job

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)
SYSCTLS = {
    "net.bridge.bridge-nf-call-iptables": 1,
    "net.bridge.bridge-nf-call-ip6tables": 1,
    "net.ipv4.ip_forward": 1,
}
KUBERNETES_PACKAGES = ["kubelet", "kubeadm", "kubectl"]
# gnupg stands for the document's “pgp”, a name that Debian 12 has no package of.
PREREQUISITES = ["ca-certificates", "containerd", "curl", "gnupg", "nfs-common"]
REGISTRIES = ["docker.io", "quay.io", "registry.k8s.io"]


# A run that was killed may have left an apt at work over there, which holds its locks until it ends.
PATIENCE = {"_retries": 6, "_retry_delay": 10}


def prepare(job: Job) -> None:
    """Everything, in order; called once for each node with pyinfra's host in context."""
    packages_whole()
    swap_off()
    kernel()
    names(job)
    container_runtime(job)
    kubernetes_packages(job)


def put(name: str, path: str, template: str, **values: object) -> object:
    """A file from one of our templates, owned by root."""
    text = TEMPLATES.get_template(template).render(**values)
    return files.put(name=name, src=StringIO(text), dest=path, mode="644", user="root", group="root")


def packages_whole() -> None:
    """Finish what an installation left that was cut off half-way; apt does nothing before that."""
    if host.get_fact(facts.HalfInstalled):
        server.shell(name="half-installed packages finished", commands=["dpkg --configure -a"], **PATIENCE)


def swap_off() -> None:
    """No swap now, none in fstab, none after a reboot: the kubelet refuses to start with it."""
    if host.get_fact(facts.Swaps):
        server.shell(name="swap off", commands=["swapoff -a"])
    if host.get_fact(facts.SwapsInFstab):
        server.shell(name="no swap in fstab", commands=[f"sed -Ei '/{facts.FSTAB_SWAP}/s/^/# /' /etc/fstab"])
    if not host.get_fact(facts.SwapMasked):
        server.shell(name="swap masked", commands=["systemctl mask swap.target"])


def kernel() -> None:
    """Modules and sysctls that pod networking needs, now and at boot."""
    put("modules at boot", "/etc/modules-load.d/k8s.conf", "modules.conf.j2")
    if missing := host.get_fact(facts.MissingKernelFeatures):
        server.shell(name="modules now", commands=[f"modprobe {module}" for module in missing])
    for key, value in SYSCTLS.items():
        server.sysctl(name=f"sysctl {key}", key=key, value=value, persist=True, persist_file="/etc/sysctl.d/k8s.conf")


def names(job: Job) -> None:
    """Every machine of the environment by name, without a name server."""
    own = job.hosts[host.name]
    put("names of machines", "/etc/hosts", "hosts.j2", hosts=job.hosts, own_name=host.name, own_address=own)


def container_runtime(job: Job) -> None:
    """Containerd with the systemd cgroup driver, which the kubelet uses as well."""
    known = host.get_fact(facts.AptListsHave, package="containerd")
    apt.packages(name="prerequisites", packages=PREREQUISITES, update=not known, no_recommends=True, **PATIENCE)
    config = put(
        "containerd's configuration",
        "/etc/containerd/config.toml",
        "containerd.toml.j2",
        restrict_oom_score_adj=not host.get_fact(facts.OomScoreLowerable),
    )
    put("crictl's configuration", "/etc/crictl.yaml", "crictl.yaml.j2")
    if job.registry_mirror:
        for registry in REGISTRIES:
            put(
                f"where images of {registry} come from",
                f"/etc/containerd/certs.d/{registry}/hosts.toml",
                "hosts.toml.j2",
                mirror=job.registry_mirror.rstrip("/"),
            )
    systemd.service(name="containerd at boot", service="containerd", running=True, enabled=True)
    systemd.service(
        name="containerd takes its configuration",
        service="containerd",
        restarted=True,
        _if=config.did_change,  # type: ignore[attr-defined]
    )


def kubernetes_packages(job: Job) -> None:
    """kubelet, kubeadm and kubectl from the environment's source, held at their version."""
    files.directory(name="apt's key rings", path="/etc/apt/keyrings", mode="755")
    files.put(
        name="key of the Kubernetes packages",
        src=StringIO(job.kubernetes_key),
        dest="/etc/apt/keyrings/kubernetes-apt-keyring.asc",
        mode="644",
    )
    put(
        "source of the Kubernetes packages",
        "/etc/apt/sources.list.d/kubernetes.list",
        "kubernetes.list.j2",
        url=job.kubernetes_source.rstrip("/"),
    )
    if not host.get_fact(facts.AptListsHave, package="kubelet"):
        server.shell(
            name="lists of the Kubernetes packages",
            # Only this source: Debian's own lists are as fresh as the packages above needed them.
            commands=[
                "apt-get update -o Dir::Etc::sourcelist=sources.list.d/kubernetes.list -o Dir::Etc::sourceparts=- "
                "-o APT::Get::List-Cleanup=0"
            ],
            **PATIENCE,
        )
    apt.packages(name="Kubernetes packages", packages=KUBERNETES_PACKAGES, no_recommends=True, **PATIENCE)
    held = host.get_fact(facts.HeldPackages)
    if missing := [package for package in KUBERNETES_PACKAGES if package not in held]:
        server.shell(name="Kubernetes packages held", commands=["apt-mark hold " + " ".join(missing)])
    systemd.service(name="kubelet at boot", service="kubelet", running=None, enabled=True)
