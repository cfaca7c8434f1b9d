"""Which software a target runs, and which judged it: facts, each asked of the part itself."""

import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream

from certificate.record import Software
from environments.model import Role
from provisioning.action import ActionFailed
from provisioning.cluster import REQUEST_TIMEOUT_S, UNAVAILABLE
from provisioning.hypervisor import HypervisorError
from provisioning.session import Session
from provisioning.site import NAMESPACE, SELECTOR

LIBRARIES = ("pytest", "pytest-bdd", "pytest-testinfra", "proxmoxer", "kubernetes", "PyMySQL", "requests", "cloudflare")
GIT_TIMEOUT_S = ASK_TIMEOUT_S = 30
WORDPRESS = 'include "/var/www/html/wp-includes/version.php"; echo $wp_version;'
# NFS-Ganesha is a program; the kernel's server has the kernel's version.
NFS = 'if pgrep -x ganesha.nfsd >/dev/null; then ganesha.nfsd -v; else echo "nfsd of Linux $(uname -r)"; fi'
# What a part may be silent by; the certificate then says so.
SILENT = (ActionFailed, ApiException, HypervisorError, OSError, *UNAVAILABLE)


def of_target(session: Session) -> dict[str, str]:
    """The versions of a target's components by name; one that cannot be asked is told as such."""
    return {name: told(ask) for name, ask in parts(session).items()} | {
        name: metadata.version(name) for name in LIBRARIES if _installed(name)
    }


def parts(session: Session) -> Mapping[str, Callable[[], str]]:
    """Every component, and how it is asked itself; asking raises one of SILENT."""
    return {
        "Proxmox VE API": session.hypervisor.version,
        "Kubernetes nodes": lambda: _nodes(session),
        "MetalLB": lambda: _speaker(session),
        "etcd": lambda: _executed(session, "kube-system", "component=etcd", ["etcd", "--version"]),
        "MySQL NDB Cluster": lambda: session.database.query("SELECT VERSION()")[0][0],
        "WordPress": lambda: _executed(session, NAMESPACE, SELECTOR, ["php", "-r", WORDPRESS]),
        "PHP": lambda: _executed(session, NAMESPACE, SELECTOR, ["php", "-r", "echo PHP_VERSION;"]),
        "NFS server": lambda: _first_line(session, Role.NFS, NFS),
        "connector": lambda: _first_line(session, Role.TUNNEL, "cloudflared --version"),
    }


def _nodes(session: Session) -> str:
    listed = session.cluster.core.list_node(_request_timeout=REQUEST_TIMEOUT_S).items
    found = {
        f"kubelet {info.kubelet_version}, {info.container_runtime_version}, {info.os_image}, {info.kernel_version}"
        for info in (node.status.node_info for node in listed)
    }
    return "; ".join(sorted(found))


def _speaker(session: Session) -> str:
    """The image that the speakers run, with its version."""
    pods = session.cluster.core.list_namespaced_pod(
        "metallb-system", label_selector="component=speaker", _request_timeout=REQUEST_TIMEOUT_S
    ).items
    return "; ".join(sorted({pod.spec.containers[0].image for pod in pods})) or "no speaker"


def _executed(session: Session, namespace: str, selector: str, argv: list[str]) -> str:
    """What a command says in each of some Pods, in the first line; differing ones side by side."""
    core = session.cluster.core
    pods = core.list_namespaced_pod(
        namespace, label_selector=selector, field_selector="status.phase=Running", _request_timeout=REQUEST_TIMEOUT_S
    ).items
    said = {
        stream(
            core.connect_get_namespaced_pod_exec,
            pod.metadata.name,
            namespace,
            command=argv,
            stdin=False,
            stdout=True,
            stderr=False,
            tty=False,
            _request_timeout=REQUEST_TIMEOUT_S,
        ).partition("\n")[0]
        for pod in pods
        if pod.status.phase == "Running"
    }
    return "; ".join(sorted(said)) or "nobody to ask"


def _first_line(session: Session, role: Role, script: str) -> str:
    """What a machine's own program says of itself."""
    machine = session.environment.with_role(role)[0]
    return session.shell.check(machine, script, timeout_s=ASK_TIMEOUT_S).strip().partition("\n")[0]


def told(ask: Callable[[], str]) -> str:
    """What a component says of itself, or that it says nothing."""
    try:
        return ask()
    except SILENT as error:
        return f"not told: {type(error).__name__}"


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def of_software(root: Path) -> Software:
    """The commit of the checkout in `root`; empty where git does not say."""
    commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain")
    return Software(commit=commit, changed=bool(changes), python=f"{platform.python_version()} on {sys.platform}")


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
