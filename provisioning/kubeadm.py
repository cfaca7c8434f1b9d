"""The cluster by kubeadm: the first control plane, those that join it, and what both are told."""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from environments.model import Environment, Machine, Role
from provisioning.action import ActionFailed
from provisioning.machines import in_parallel
from provisioning.ssh import Shell, Unreachable

KUBECTL = "kubectl --kubeconfig /etc/kubernetes/admin.conf --request-timeout=10s"
# What `kubeadm init` leaves last; with these in place nothing of it is missing.
LAST_OF_INIT = (
    "get --raw /readyz && {kubectl} -n kube-public get configmap cluster-info && "
    "{kubectl} -n kube-system get daemonset kube-proxy deployment/coredns"
)
TOKEN_TTL = "15m"
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
            "cgroupDriver": "systemd",
        },
    ]


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

    def initialised(self) -> bool:
        """Whether `kubeadm init` has run to its end; an unreachable machine has nothing on it."""
        try:
            probe = LAST_OF_INIT.format(kubectl=KUBECTL)
            return self.shell.run(self.first, f"test -e /etc/kubernetes/admin.conf && {KUBECTL} {probe}").exit_code == 0
        except Unreachable:
            return False

    def joined(self, machine: Machine) -> bool:
        """Whether `machine` is in the cluster with all that its role needs."""
        wanted = "test -e /etc/kubernetes/kubelet.conf && systemctl is-active --quiet kubelet"
        if machine.role is Role.CONTROL_PLANE:
            wanted += f" && test -e /etc/kubernetes/manifests/etcd.yaml && {KUBECTL} get --raw /readyz"
        try:
            if self.shell.run(machine, wanted).exit_code:
                return False
            labels = self.shell.run(self.first, f"{KUBECTL} get node {machine.name} -o jsonpath='{{.metadata.labels}}'")
        except Unreachable:
            return False
        # The label is the last thing that joining a control plane sets.
        return labels.exit_code == 0 and (
            machine.role is not Role.CONTROL_PLANE or "node-role.kubernetes.io/control-plane" in labels.stdout
        )

    def reset(self, machine: Machine) -> None:
        """Clear what a cut-off kubeadm left on `machine`, if anything."""
        self.shell.check(
            machine,
            "if ls /etc/kubernetes/*.conf /etc/kubernetes/manifests/*.yaml >/dev/null 2>&1; then "
            f"kubeadm reset --force --cri-socket {CRI_SOCKET} && rm -rf /etc/cni/net.d/*; fi",
            timeout_s=300,
        )


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
        return [] if self.kubeadm.initialised() else [f"kubeadm init on {self.kubeadm.first.name}"]

    def apply(self) -> None:
        """Run `kubeadm init`, after clearing what an earlier, cut-off one left."""
        kubeadm = self.kubeadm
        kubeadm.reset(kubeadm.first)
        documents = [
            init_document(kubeadm.environment, kubeadm.first, secrets.token_hex(32)),
            *cluster_documents(kubeadm.environment, kubeadm.version),
        ]
        kubeadm.shell.check(
            kubeadm.first,
            "kubeadm init --upload-certs --skip-token-print --skip-certificate-key-print --config /dev/stdin",
            stdin=as_yaml(documents),
            timeout_s=900,
        )


@dataclass(frozen=True)
class NodesJoined:
    """Every machine of one role is in the cluster; control planes join one by one, workers all at once."""

    kubeadm: Kubeadm
    role: Role
    name: str

    def _missing(self) -> list[Machine]:
        others = [m for m in self.kubeadm.environment.with_role(self.role) if m != self.kubeadm.first]
        return [machine for machine in others if not self.kubeadm.joined(machine)]

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
        self.kubeadm.reset(machine)
        document = join_document(self.kubeadm.environment, machine, given)
        self.kubeadm.shell.check(machine, "kubeadm join --config /dev/stdin", stdin=as_yaml([document]), timeout_s=600)
