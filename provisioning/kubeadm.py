"""The cluster by kubeadm: the first control plane, those that join it, and what both are told."""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import yaml

from environments.model import Environment, Machine, Role
from provisioning.action import ActionFailed
from provisioning.machines import answers, in_parallel
from provisioning.ssh import Shell, Unreachable

# There while kubeadm works on a machine, on disk before it begins and gone when it has ended well: what tells
# work that was cut off, which may be cleared, from a cluster, which must never be.
MARKER = "/var/lib/haproof/kubeadm-unfinished"
NODE = "/etc/kubernetes/kubelet.conf"
TOKEN_TTL = "15m"
KUBEADM_TIMEOUT_S = 900
CRI_SOCKET = "unix:///run/containerd/containerd.sock"


def cluster_documents(environment: Environment, version: str) -> list[dict[str, Any]]:
    """Kubeadm's ClusterConfiguration and the kubelet's, as the document has them plus the pod subnet. Pure."""
    kubernetes = environment.kubernetes
    return [
        {
            "apiVersion": "kubeadm.k8s.io/v1beta3",
            "kind": "ClusterConfiguration",
            "kubernetesVersion": version,
            "controlPlaneEndpoint": f"{kubernetes.control_plane_endpoint}:6443",
            "networking": {
                "podSubnet": str(kubernetes.pod_subnet),
                "serviceSubnet": str(kubernetes.service_subnet),
            },
        },
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            **kubelet_settings(environment),
        },
    ]


def kubelet_settings(environment: Environment) -> Mapping[str, Any]:
    """What every kubelet is told, beyond what kubeadm tells it by itself. Pure."""
    return {"cgroupDriver": "systemd", **environment.kubernetes.kubelet}


def registration(environment: Environment) -> dict[str, Any]:
    """How a node registers itself. Pure."""
    return {
        "criSocket": CRI_SOCKET,
        "imagePullPolicy": "IfNotPresent",
        "ignorePreflightErrors": list(environment.kubernetes.ignored_preflight_checks),
    }


def init_document(environment: Environment, machine: Machine, certificate_key: str) -> dict[str, Any]:
    """Kubeadm's InitConfiguration for the first control plane. Pure; holds a secret."""
    return {
        "apiVersion": "kubeadm.k8s.io/v1beta3",
        "kind": "InitConfiguration",
        "bootstrapTokens": [{"ttl": TOKEN_TTL}],
        "certificateKey": certificate_key,
        "localAPIEndpoint": {"advertiseAddress": str(environment.address(machine))},
        "nodeRegistration": registration(environment),
    }


@dataclass(frozen=True)
class JoinSecrets:
    """What lets a node join for the next minutes; never printed."""

    token: str
    ca_hash: str
    certificate_key: str

    def __repr__(self) -> str:
        return "JoinSecrets(…)"


def join_document(environment: Environment, machine: Machine, given: JoinSecrets) -> dict[str, Any]:
    """Kubeadm's JoinConfiguration for `machine`, by its role. Pure; holds secrets."""
    document: dict[str, Any] = {
        "apiVersion": "kubeadm.k8s.io/v1beta3",
        "kind": "JoinConfiguration",
        "nodeRegistration": registration(environment),
        "discovery": {
            "bootstrapToken": {
                "apiServerEndpoint": f"{environment.kubernetes.control_plane_endpoint}:6443",
                "token": given.token,
                "caCertHashes": [given.ca_hash],
            }
        },
    }
    if machine.role is Role.CONTROL_PLANE:
        document["controlPlane"] = {
            "localAPIEndpoint": {"advertiseAddress": str(environment.address(machine))},
            "certificateKey": given.certificate_key,
        }
    return document


class Progress(StrEnum):
    """How far kubeadm has come on a machine."""

    NOT_BEGUN = "not begun"
    CUT_OFF = "cut off"
    FINISHED = "finished"


def progress_of(present: Sequence[str]) -> Progress:
    """What the files that are present tell. Pure."""
    if MARKER in present:
        return Progress.CUT_OFF
    return Progress.FINISHED if present else Progress.NOT_BEGUN


def kubeadm_script(command: str) -> str:
    """What runs `kubeadm COMMAND` on a machine, its configuration on standard input. Pure.

    A runner that was killed leaves its kubeadm at work over there: the lock waits for that to end, and what it
    has finished stays.
    """
    return f"""
        exec 9>/run/lock/haproof-kubeadm
        flock --wait {KUBEADM_TIMEOUT_S // 2} 9 || {{ echo "another kubeadm is still at work here" >&2; exit 75; }}
        if [ -e {MARKER} ]; then
            kubeadm reset --force --cri-socket {CRI_SOCKET} 9>&- && rm -rf /etc/cni/net.d/*
        elif [ -e {NODE} ]; then
            exit 0
        fi
        mkdir -p $(dirname {MARKER}) && touch {MARKER} && sync
        kubeadm {command} --config /dev/stdin 9>&- && rm {MARKER}
    """


@dataclass(frozen=True)
class Kubeadm:
    """What the actions of this module share."""

    environment: Environment
    shell: Shell

    @property
    def first(self) -> Machine:
        """The machine that the control plane endpoint names: there the cluster begins."""
        return self.environment.machine(self.environment.kubernetes.control_plane_endpoint)

    @cached_property
    def version(self) -> str:
        """The release that the nodes have installed, as `v1.30.4`."""
        return self.shell.check(self.first, "kubeadm version -o short").strip()

    def progress(self, machine: Machine) -> Progress:
        """How far kubeadm has come on `machine`; one that cannot be entered has not begun."""
        if not answers(str(self.environment.address(machine))):
            return Progress.NOT_BEGUN
        try:
            seen = self.shell.run(machine, f"ls -d {MARKER} {NODE} 2>/dev/null").stdout
        except Unreachable:
            return Progress.NOT_BEGUN
        return progress_of(seen.split())

    def run(self, machine: Machine, command: str, documents: Sequence[dict[str, Any]]) -> None:
        """Run `kubeadm COMMAND` with `documents`, after clearing what an earlier, cut-off one left.

        A machine that carries a finished node is left alone, whatever state that is in. Raises ActionFailed.
        """
        script = kubeadm_script(command)
        self.shell.check(machine, script, stdin=as_yaml(documents), timeout_s=KUBEADM_TIMEOUT_S)


def as_yaml(documents: Sequence[dict[str, Any]]) -> str:
    """Several documents in one stream."""
    return yaml.safe_dump_all(documents, sort_keys=False)


@dataclass(frozen=True)
class ControlPlaneBegun:
    """The first control plane runs; its certificates are uploaded for the others for two hours."""

    kubeadm: Kubeadm
    name: str = "first control plane"

    def pending(self) -> Sequence[str]:
        """One line unless `kubeadm init` has run to its end."""
        progress = self.kubeadm.progress(self.kubeadm.first)
        return [] if progress is Progress.FINISHED else [f"kubeadm init on {self.kubeadm.first.name} ({progress})"]

    def apply(self) -> None:
        """Run `kubeadm init`; neither token nor certificate key is printed."""
        kubeadm = self.kubeadm
        kubeadm.run(
            kubeadm.first,
            "init --upload-certs --skip-token-print --skip-certificate-key-print",
            [
                init_document(kubeadm.environment, kubeadm.first, secrets.token_hex(32)),
                *cluster_documents(kubeadm.environment, kubeadm.version),
            ],
        )


@dataclass(frozen=True)
class NodesJoined:
    """Every machine of one role is in the cluster; control planes join one by one, workers all at once."""

    kubeadm: Kubeadm
    role: Role
    name: str

    def _missing(self) -> list[Machine]:
        others = [m for m in self.kubeadm.environment.with_role(self.role) if m != self.kubeadm.first]
        return [machine for machine in others if self.kubeadm.progress(machine) is not Progress.FINISHED]

    def pending(self) -> Sequence[str]:
        """A line for each machine that has not joined."""
        return [f"kubeadm join on {machine.name}" for machine in self._missing()]

    def apply(self) -> None:
        """Join what has not joined with a token that lives for minutes and is never printed."""
        missing = self._missing()
        given = self._secrets()
        try:
            if self.role is Role.CONTROL_PLANE:
                # etcd takes one new member at a time.
                for machine in missing:
                    self._join(machine, given)
            else:
                in_parallel(missing, lambda machine: self._join(machine, given))
        finally:
            self.kubeadm.shell.run(
                self.kubeadm.first,
                "read token; KUBECONFIG=/etc/kubernetes/admin.conf kubeadm token delete ${token%%.*}",
                stdin=given.token + "\n",
            )

    def _secrets(self) -> JoinSecrets:
        kubeadm = self.kubeadm
        key = secrets.token_hex(32)
        if self.role is Role.CONTROL_PLANE:
            documents = [
                init_document(kubeadm.environment, kubeadm.first, key),
                *cluster_documents(kubeadm.environment, kubeadm.version),
            ]
            kubeadm.shell.check(
                kubeadm.first,
                "kubeadm init phase upload-certs --upload-certs --skip-certificate-key-print --config /dev/stdin",
                stdin=as_yaml(documents),
            )
        token = kubeadm.shell.check(kubeadm.first, f"kubeadm token create --ttl {TOKEN_TTL}").strip().splitlines()[-1]
        digest = kubeadm.shell.check(
            kubeadm.first,
            "openssl x509 -pubkey -noout -in /etc/kubernetes/pki/ca.crt | openssl pkey -pubin -outform der | sha256sum",
        )
        match = re.match(r"[0-9a-f]{64}", digest)
        if not match:
            raise ActionFailed("the cluster's CA certificate cannot be read", machine=kubeadm.first.name)
        return JoinSecrets(token, f"sha256:{match[0]}", key)

    def _join(self, machine: Machine, given: JoinSecrets) -> None:
        self.kubeadm.run(machine, "join", [join_document(self.kubeadm.environment, machine, given)])
