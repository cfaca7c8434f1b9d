"""A run against one environment: the file read, its provider entered, its secrets found."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments.load import EnvironmentInvalid, find, load, require_files
from environments.model import Environment
from provisioning.action import ActionFailed, BuildFailed
from provisioning.bringup import actions
from provisioning.build import Outcome, Reporter, bring_up
from provisioning.cluster import Cluster
from provisioning.database import Database
from provisioning.hypervisor import Hypervisor, HypervisorError
from provisioning.ndb import Ndb
from provisioning.ssh import Shell
from provisioning.state import Busy, State


class ProviderError(Exception):
    """The environment's provider could not bring its hypervisor up; the message says why and what to do."""


# What keeps a run from having a target at all; each message says what to do.
REFUSALS = (EnvironmentInvalid, ActionFailed, BuildFailed, Busy, HypervisorError, ProviderError, OSError)


@dataclass(frozen=True)
class Session:
    """An environment that can be reached, and the ways to it."""

    environment: Environment
    state: State

    @property
    def shell(self) -> Shell:
        """Commands on its machines."""
        return Shell(self.environment, self.state)

    @property
    def cluster(self) -> Cluster:
        """Its Kubernetes API."""
        return Cluster(self.environment, self.shell)

    @property
    def ndb(self) -> Ndb:
        """Its database cluster."""
        return Ndb(self.environment, self.shell)

    @property
    def database(self) -> Database:
        """Its SQL node."""
        return Database(self.environment, self.shell)

    @property
    def hypervisor(self) -> Hypervisor:
        """Its Proxmox VE API."""
        return Hypervisor(self.environment.hypervisor)

    def build(self, reporter: Reporter, *, plan: bool = False) -> Outcome:
        """Bring the target up, or with `plan` only tell what would change.

        Raises BuildFailed or ActionFailed.
        """
        return bring_up(actions(self.environment, self.state), reporter, plan=plan)


def open_session(name_or_file: str) -> Session:
    """Read the environment and make it reachable; raises EnvironmentInvalid and ProviderError."""
    path: Path = find(name_or_file)
    environment = load(path)
    if environment.hypervisor.provider:
        provider(environment.hypervisor.provider).enter(**environment.hypervisor.provider_options)
    require_files(environment, path)
    return Session(environment, State.of(environment.name))


def provider(package: str) -> Any:
    """The module `provider` of a package; raises ProviderError when there is none."""
    name = f"{package}.provider"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in (package, name):
            raise  # one that it lacks itself
        raise ProviderError(
            f"hypervisor.provider is “{package}”, and there is no module {name}; expected a package that brings a "
            "hypervisor up, as lab does, or no such key for one that is up"
        ) from error
