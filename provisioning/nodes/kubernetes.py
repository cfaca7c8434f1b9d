"""What every Kubernetes node must be before kubeadm runs; the document's own steps, in its order."""

from pyinfra import host
from pyinfra.operations import server, systemd

from provisioning.nodes import facts, helm
from provisioning.nodes.common import following, of_unit, packages, put, render, source
from provisioning.nodes.job import Job, KubernetesJob, Node

SYSCTLS = {
    "net.bridge.bridge-nf-call-iptables": 1,
    "net.bridge.bridge-nf-call-ip6tables": 1,
    "net.ipv4.ip_forward": 1,
}
CONTAINERD_CONFIG = "/etc/containerd/config.toml"
KUBELET_DROP_IN = "/etc/systemd/system/kubelet.service.d/20-runtime.conf"
KUBERNETES_PACKAGES = ["kubelet", "kubeadm", "kubectl"]
# gnupg stands for the document's “pgp”, a name that Debian 12 has no package of.
PREREQUISITES = ["ca-certificates", "containerd", "curl", "gnupg", "nfs-common"]
REGISTRIES = ["docker.io", "quay.io", "registry.k8s.io"]


def prepare(job: Job, node: Node) -> None:
    """Everything, in order; called with pyinfra's host in context."""
    swap_off()
    kernel()
    container_runtime(job.kubernetes)
    kubernetes_packages(job.kubernetes)
    helm.prepare(job, node)


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
    put("modules at boot", "/etc/modules-load.d/k8s.conf", render("modules.conf.j2"))
    if missing := host.get_fact(facts.MissingKernelFeatures):
        server.shell(name="modules now", commands=[f"modprobe {module}" for module in missing])
    for key, value in SYSCTLS.items():
        server.sysctl(name=f"sysctl {key}", key=key, value=value, persist=True, persist_file="/etc/sysctl.d/k8s.conf")


def container_runtime(job: KubernetesJob) -> None:
    """Containerd with the systemd cgroup driver, which the kubelet uses as well."""
    packages("prerequisites", PREREQUISITES)
    text = render("containerd.toml.j2", restrict_oom_score_adj=not host.get_fact(facts.OomScoreLowerable))
    config = put("containerd's configuration", CONTAINERD_CONFIG, text)
    put("crictl's configuration", "/etc/crictl.yaml", render("crictl.yaml.j2"))
    if job.registry_mirror:
        text = render("hosts.toml.j2", mirror=job.registry_mirror.rstrip("/"))
        for registry in REGISTRIES:
            put(f"where images of {registry} come from", f"/etc/containerd/certs.d/{registry}/hosts.toml", text)
    systemd.service(name="containerd at boot", service="containerd", running=True, enabled=True)
    systemd.service(
        name="containerd takes its configuration",
        service="containerd",
        restarted=True,
        **following(config, owed=host.get_fact(facts.StartedBefore, unit="containerd", path=CONTAINERD_CONFIG)),
    )


def kubernetes_packages(job: KubernetesJob) -> None:
    """kubelet, kubeadm and kubectl from the environment's source, held at their version."""
    source("Kubernetes", job.source, "kubelet")
    packages("Kubernetes packages", KUBERNETES_PACKAGES, listed=True)
    held = host.get_fact(facts.HeldPackages)
    if missing := [package for package in KUBERNETES_PACKAGES if package not in held]:
        server.shell(name="Kubernetes packages held", commands=["apt-mark hold " + " ".join(missing)])
    of_unit("kubelet after its runtime", KUBELET_DROP_IN, render("kubelet.conf.j2"), unit="kubelet")
    systemd.service(name="kubelet at boot", service="kubelet", running=None, enabled=True)
