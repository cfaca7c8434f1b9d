"""From a TOML file to an `Environment`, or to every fault of it at once."""

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from environments import faults
from environments.faults import Fault
from environments.model import Edge, Environment, Hypervisor, Kubernetes, Machine, MetalLb, Ndb, Network, Nfs, WordPress

FOLDER = Path(__file__).parent
Model = TypeVar("Model", bound=BaseModel)


class EnvironmentInvalid(Exception):
    """The file cannot be used; the message lists every fault as `file: key: what was expected`."""

    def __init__(self, path: Path, found: list[Fault]) -> None:
        self.path = path
        self.faults = found
        super().__init__("\n".join(f"{path}: {fault.key}: {fault.expected}" for fault in found))


def find(name_or_file: str) -> Path:
    """The file of an environment given by name (in this folder) or by path; raises EnvironmentInvalid."""
    path = Path(name_or_file)
    if path.suffix != ".toml" and not path.is_file():
        path = FOLDER / f"{name_or_file}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        raise EnvironmentInvalid(path, [Fault("file", f"no such file; expected a TOML file, or one of: {known}")])
    return path


def load(path: Path) -> Environment:
    """Read and check `path`.

    Secrets, keys and certificates are looked for here too, unless a provider brings the hypervisor up: then they
    exist only after it has, and `require_files` is for afterwards. Raises EnvironmentInvalid with all faults.
    """
    try:
        raw = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        raise EnvironmentInvalid(path, [Fault("file", f"cannot be read as TOML: {error}")]) from error
    environment: Environment | None = None
    found: list[Fault] = []
    try:
        environment = Environment.model_validate(raw)
    except ValidationError as error:
        found += _told(error)
    found += _cross_faults(raw)
    if environment and not environment.hypervisor.provider:
        found += faults.file_faults(environment)
    if found or environment is None:
        raise EnvironmentInvalid(path, sorted(set(found), key=lambda fault: fault.key))
    return environment


def require_files(environment: Environment, path: Path) -> None:
    """Raise EnvironmentInvalid unless every secret, key and certificate that `environment` refers to can be used."""
    if found := list(faults.file_faults(environment)):
        raise EnvironmentInvalid(path, found)


def _told(error: ValidationError) -> list[Fault]:
    """Pydantic's errors in our words; a value is repeated only where it cannot be a secret."""
    found = []
    for item in error.errors(include_url=False):
        key = ""
        for part in item["loc"]:
            key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else str(part)
        if item["type"] == "extra_forbidden":
            expected = "unknown key; remove it or correct its name"
        elif item["type"] == "missing":
            expected = "is missing; this key is required"
        elif key.endswith(".reference"):
            key = key.removesuffix(".reference")
            expected = "expected a reference to a secret, env:NAME or file:PATH, never the secret itself"
        else:
            expected = item["msg"].removeprefix("Value error, ")
            if isinstance(item["input"], str | int | float):
                expected += f" (found {item['input']!r})"
        found.append(Fault(key, expected))
    return found


def _cross_faults(raw: dict[str, Any]) -> list[Fault]:
    """Faults between values, judged over those parts of the file that can be read on their own."""
    networks = {
        name: network
        for name, value in _table(raw, "networks").items()
        if (network := _parsed(Network, value)) is not None
    }
    rows = raw.get("machines")
    rows = rows if isinstance(rows, list) else []
    machines = [
        (index, machine) for index, value in enumerate(rows) if (machine := _parsed(Machine, value)) is not None
    ]
    hypervisor = _parsed(Hypervisor, raw.get("hypervisor"))
    kubernetes = _parsed(Kubernetes, raw.get("kubernetes"))
    metallb = _parsed(MetalLb, raw.get("metallb"))
    ndb, nfs = _parsed(Ndb, raw.get("ndb")), _parsed(Nfs, raw.get("nfs"))
    wordpress, edge = _parsed(WordPress, raw.get("wordpress")), _parsed(Edge, raw.get("edge"))
    found = [*faults.network_faults(networks, kubernetes), *faults.address_faults(networks, machines)]
    found += faults.machine_faults(machines, hypervisor.template.vmid if hypervisor else None)
    found += faults.reference_faults(machines, kubernetes, metallb, wordpress)
    if metallb:
        found += faults.pool_faults(metallb, networks, machines)
    readable = [machine for _, machine in machines]
    found += faults.client_faults(nfs, wordpress, readable)
    if readable and len(readable) == len(rows):  # else one may be missing here that is only spelled wrongly
        found += faults.role_faults(readable)
        found += faults.replica_faults(ndb, readable) if ndb else []
    if edge:
        found += faults.edge_faults(edge)
    return found


def _table(raw: dict[str, Any], key: str) -> dict[str, Any]:
    value = raw.get(key, {})
    return value if isinstance(value, dict) else {}


def _parsed(model: type[Model], value: Any) -> Model | None:
    try:
        return model.model_validate(value)
    except ValidationError:
        return None
