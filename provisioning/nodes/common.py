"""What every machine has, whatever its role; and the forms that operations of all roles share."""

from io import StringIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pyinfra import host
from pyinfra.operations import apt, files, server, systemd

from provisioning.nodes import facts
from provisioning.nodes.job import Node, Source

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)
# A run that was killed may have left an apt at work over there, which holds its locks until it ends.
PATIENCE = {"_retries": 6, "_retry_delay": 10}


def prepare(node: Node) -> None:
    """Whole packages and names for every machine."""
    packages_whole()
    names(node)


def render(template: str, **values: object) -> str:
    """The text of one of our templates."""
    return TEMPLATES.get_template(template).render(**values)


def put(name: str, path: str, text: str, *, mode: str = "644") -> Any:
    """A file with `text`, owned by root; gives pyinfra's operation, to ask whether it changed."""
    return files.put(name=name, src=StringIO(text), dest=path, mode=mode, user="root", group="root")


def following(written: Any, *, owed: bool) -> dict[str, Any]:
    """For an operation that follows a file: when this run has `written` it, or when one that was cut off `owed` it."""
    return {} if owed else {"_if": written.did_change}


def of_unit(name: str, path: str, text: str, *, unit: str) -> None:
    """A file that belongs to a systemd unit, which systemd knows afterwards."""
    written = put(name, path, text)
    owed = host.get_fact(facts.UnitOutdated, unit=unit)
    systemd.daemon_reload(name="units read anew", **following(written, owed=owed))


def packages_whole() -> None:
    """Finish what an installation left that was cut off half-way; apt does nothing before that."""
    if host.get_fact(facts.HalfInstalled):
        server.shell(name="half-installed packages finished", commands=["dpkg --configure -a"], **PATIENCE)


def names(node: Node) -> None:
    """Every machine of the environment by name, without a name server."""
    text = render("hosts.j2", hosts=node.hosts, own_name=node.name, own_address=node.hosts[node.name])
    put("names of machines", "/etc/hosts", text)


def packages(name: str, wanted: list[str], *, listed: bool = False) -> None:
    """Packages of the sources that the machine has; its lists are read anew only where they do not know one.

    `listed` says that `source` has seen to the lists.
    """
    known = listed or host.get_fact(facts.AptListsHave, packages=wanted)
    apt.packages(name=name, packages=wanted, update=not known, no_recommends=True, **PATIENCE)


def source(name: str, described: Source, wanted: str) -> None:
    """An apt source with its key, and its lists read where they do not know the package `wanted` yet."""
    files.directory(name="apt's key rings", path="/etc/apt/keyrings", mode="755")
    put(f"key of the {name} packages", f"/etc/apt/keyrings/{described.name}-apt-keyring.asc", described.key)
    put(
        f"source of the {name} packages",
        f"/etc/apt/sources.list.d/{described.name}.list",
        render("source.list.j2", source=described),
    )
    if not host.get_fact(facts.AptListsHave, packages=[wanted]):
        server.shell(
            name=f"lists of the {name} packages",
            # Only this source: Debian's own lists are as fresh as other packages needed them.
            commands=[
                f"apt-get update -o Dir::Etc::sourcelist=sources.list.d/{described.name}.list "
                "-o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0"
            ],
            **PATIENCE,
        )
