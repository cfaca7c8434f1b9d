"""Which software a target runs, and which judged it: facts, each asked of the part itself."""

import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

from kubernetes.client.exceptions import ApiException

from certificate.record import Software
from provisioning.action import ActionFailed
from provisioning.cluster import REQUEST_TIMEOUT_S, UNAVAILABLE
from provisioning.hypervisor import HypervisorError
from provisioning.session import Session

LIBRARIES = ("pytest", "pytest-bdd", "pytest-testinfra", "proxmoxer", "kubernetes", "PyMySQL", "requests", "cloudflare")
GIT_TIMEOUT_S = 30
# What a part may be silent by; the certificate then says so.
SILENT = (ActionFailed, ApiException, HypervisorError, OSError, *UNAVAILABLE)


def of_target(session: Session) -> dict[str, str]:
    """The versions of a target's components by name; one that cannot be asked is told as such."""
    parts: Mapping[str, Callable[[], str]] = {
        "Proxmox VE API": session.hypervisor.version,
        "Kubernetes nodes": lambda: _nodes(session),
        "MetalLB": lambda: _speaker(session),
        "MySQL NDB Cluster": lambda: session.database.query("SELECT VERSION()")[0][0],
        "WordPress": lambda: session.environment.wordpress.image,
    }
    return {name: _told(ask) for name, ask in parts.items()} | {
        name: metadata.version(name) for name in LIBRARIES if _installed(name)
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


def _told(ask: Callable[[], str]) -> str:
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
