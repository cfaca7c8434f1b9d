"""Lies about what is configured on a Kubernetes node."""

import shlex

from environments.model import Machine, Role
from tests.sabotage.lie import Lie, Tell, edited, on
from tests.sabotage.stage import Stage

LAYER = "nodes"
DROP_IN = "/etc/systemd/system/kubelet.service.d/20-runtime.conf"


def worker(stage: Stage) -> Machine:
    """The last one."""
    return stage.with_role(Role.WORKER, -1)


def away(path: str, then: str = "true") -> Tell:
    """A file is not where it was, and somebody takes notice of it."""
    return on(
        worker,
        f"mv {path} {path}.sabotage; {then}",
        f"test ! -e {path}.sabotage || mv {path}.sabotage {path}; {then}",
    )


def sed(path: str, old: str, new: str, then: str = "true") -> Tell:
    """A file says something else, and somebody takes notice of it."""
    return on(worker, f"{edited(path, f's|{old}|{new}|')}; {then}", f"mv {path}.sabotage {path}; {then}")


def sham(program: str, script: str) -> Tell:
    """A program is a script of the shell."""
    text = shlex.quote(f"#!/bin/sh\n{script}\n")
    return on(
        worker,
        f"mv {program} {program}.sabotage; printf %s {text} > {program}; chmod 755 {program}",
        f"mv {program}.sabotage {program}",
    )


LIES = (
    Lie(
        "swap-at-boot",
        LAYER,
        ("P12",),
        "expected no swap, found: in fstab /swapfile",
        on(worker, "echo '/swapfile none swap sw 0 0' >> /etc/fstab", "sed -i '/^.swapfile/d' /etc/fstab"),
    ),
    Lie("sysctl-gone-at-boot", LAYER, ("P12",), "= 1 at boot, found None", away("/etc/sysctl.d/k8s.conf")),
    Lie(
        "sysctl-not-in-force",
        LAYER,
        ("P12",),
        "bridge-nf-call-ip6tables = 1 now, found '0'",
        on(
            worker,
            "echo 0 > /proc/sys/net/bridge/bridge-nf-call-ip6tables",
            "echo 1 > /proc/sys/net/bridge/bridge-nf-call-ip6tables",
        ),
    ),
    Lie(
        "modules-gone-at-boot",
        LAYER,
        ("P12",),
        "among the modules loaded at boot",
        away("/etc/modules-load.d/k8s.conf"),
    ),
    Lie(
        "cgroup-drivers-apart",
        LAYER,
        ("P12",),
        "expected containerd to use systemd, found cgroupfs",
        sed(
            "/etc/containerd/config.toml",
            "SystemdCgroup = true",
            "SystemdCgroup = false",
            "systemctl restart containerd",
        ),
    ),
    Lie(
        "kubelet-not-enabled",
        LAYER,
        ("P12",),
        "expected kubelet active and enabled, found active and disabled",
        on(worker, "systemctl disable -q kubelet", "systemctl enable -q kubelet"),
    ),
    Lie(
        "kubelet-before-its-runtime",
        LAYER,
        ("P12",),
        "expected kubelet after containerd",
        away(DROP_IN, "systemctl daemon-reload"),
    ),
    Lie(
        "containerd-not-enabled",
        LAYER,
        ("P12",),
        "expected containerd active and enabled, found active and disabled",
        on(worker, "systemctl disable -q containerd", "systemctl enable -q containerd"),
    ),
    Lie(
        "not-held",
        LAYER,
        ("P12",),
        "expected kubeadm to be held",
        on(worker, "apt-mark unhold kubeadm >/dev/null", "apt-mark hold kubeadm >/dev/null"),
    ),
    Lie(
        "another-release-of-kubectl",
        LAYER,
        ("P12",),
        "expected kubectl .* found v1.29.0",
        sham("/usr/bin/kubectl", """echo '{"clientVersion": {"gitVersion": "v1.29.0"}}'"""),
    ),
    Lie(
        "file-system-not-grown",
        LAYER,
        ("P13",),
        "expected file systems of about 20 GiB, found 2.0",
        sham("/usr/bin/df", "echo Filesystem 1B-blocks; echo /dev/sda1 2147483648"),
    ),
    Lie(
        "another-debian",
        LAYER,
        ("P12",),
        "expected debian 12, found debian 11",
        sed("/usr/lib/os-release", 'VERSION_ID="12"', 'VERSION_ID="11"'),
    ),
    Lie(
        "kubelet-not-enabled-at-a-reboot",
        LAYER,
        ("P12",),
        "expected every node Ready",
        on(worker, "systemctl disable -q kubelet", "systemctl enable -q --now kubelet"),
        scenarios=("A worker is rebooted",),
    ),
    Lie(
        "kubelet-without-its-runtime-at-a-reboot",
        LAYER,
        ("P12",),
        "expected a kubelet that was started once",
        on(
            worker,
            edited(DROP_IN, "s/^After=/Before=/; /^ExecStartPre=/d"),
            f"mv {DROP_IN}.sabotage {DROP_IN}; systemctl daemon-reload",
        ),
        scenarios=("A worker is rebooted",),
    ),
    Lie(
        "sysctl-gone-after-a-power-cut",
        LAYER,
        ("P12",),
        "bridge-nf-call-ip6tables = 1",
        away("/etc/sysctl.d/k8s.conf"),
        scenarios=("All machines lose their power at once",),
    ),
)
