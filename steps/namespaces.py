"""Namespaces of scenarios: one each, marked as ours, removed when it ends and seen to be gone when the run ends."""

import re
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from provisioning.cluster import REQUEST_TIMEOUT_S, UNAVAILABLE, Cluster
from provisioning.poll import NotYet, poll

LABEL = "haproof/run-by"
GONE_TIMEOUT_S = 120
ADMISSION_TIMEOUT_S = 30


def run_by(host: str) -> str:
    """The label's value for runs of this machine: what a label may hold of its name. Pure."""
    return re.sub(r"[^A-Za-z0-9]+", "-", host)[:63].strip("-") or "unnamed"


@dataclass
class Namespaces:
    """Makes namespaces and removes them again; knows those that an earlier run was killed over by their label."""

    core: client.CoreV1Api
    label: str
    removed: set[str] = field(default_factory=set)

    def make(self) -> str:
        """A new namespace in which Pods are admitted; returns its name."""
        name = f"haproof-{secrets.token_hex(4)}"
        body = {"metadata": {"name": name, "labels": {LABEL: self.label}}}
        self.core.create_namespace(body, _request_timeout=REQUEST_TIMEOUT_S)

        def admits() -> bool:
            try:
                self.core.read_namespaced_service_account("default", name, _request_timeout=REQUEST_TIMEOUT_S)
            except ApiException as error:
                if error.status != 404:
                    raise
                raise NotYet("no default service account") from error
            return True

        poll(f"namespace {name} admits Pods", admits, timeout_s=ADMISSION_TIMEOUT_S, interval_s=0.1)
        return name

    def remove(self, name: str) -> None:
        """Begin to remove `name`; a cluster that does not answer is asked again, for it may just come back."""
        self.removed.add(name)

        def accepted() -> bool:
            try:
                self.core.delete_namespace(name, _request_timeout=REQUEST_TIMEOUT_S)
            except ApiException as error:
                if error.status not in (404, 409):
                    raise NotYet(f"{error.status} {error.reason}") from error
            except UNAVAILABLE as error:
                raise NotYet(f"the API does not answer: {type(error).__name__}") from error
            return True

        poll(f"removal of namespace {name}", accepted, timeout_s=GONE_TIMEOUT_S, interval_s=1)

    def leftovers(self) -> list[str]:
        """Namespaces of runs of this machine that are still there."""
        listed = self.core.list_namespace(label_selector=f"{LABEL}={self.label}", _request_timeout=REQUEST_TIMEOUT_S)
        return [item.metadata.name for item in listed.items]

    def await_gone(self) -> None:
        """See that nothing is left of what was removed; raises DeadlineExceeded naming what is."""

        def gone() -> bool:
            try:
                left = self.removed & set(self.leftovers())
            except (ApiException, *UNAVAILABLE) as error:
                raise NotYet(f"the API does not answer: {type(error).__name__}") from error
            if left:
                raise NotYet(f"{', '.join(sorted(left))} still there")
            return True

        poll("removal of the scenarios' namespaces", gone, timeout_s=GONE_TIMEOUT_S, interval_s=0.5)


@pytest.fixture(scope="session")
def namespaces(cluster: Cluster) -> Iterator[Namespaces]:
    """The maker of namespaces; this run holds the target, so older ones are leftovers and go first."""
    namespaces = Namespaces(cluster.core, run_by(socket.gethostname()))
    for name in namespaces.leftovers():
        namespaces.remove(name)
    yield namespaces
    namespaces.await_gone()


@pytest.fixture
def namespace(namespaces: Namespaces) -> Iterator[str]:
    """A namespace of the scenario's own."""
    name = namespaces.make()
    yield name
    namespaces.remove(name)
