"""The lab's commands for people: `python -m lab --help`."""

import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from lab import leftovers, namespace, provider
from lab.attach import attach_command, running_guests
from lab.cache import BuildError, cache_app
from lab.lock import LabBusyError, Owner, live_owner
from lab.mirror import content
from lab.paths import Paths
from provisioning.poll import NotYet, poll

# Imports inside functions keep slow libraries from the commands that people script on.
NODE, ADDRESS = "pve", "172.31.0.1"
TASK_TIMEOUT_S = 600.0
ADMIN_CONF = "/etc/kubernetes/admin.conf"
# What `down --delete` removes of the state directory; the token, keys and certificates stay.
MACHINES = ("guests", "qemu-server", "storage", "tasks")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="""The lab: a Proxmox VE in a box, with real Debian machines in a sealed network on this computer.

    `up` starts it (nothing on this computer's own network changes), `status` shows it, `exec` runs a command on a
    machine, `kubectl` talks to the cluster, `down` ends it. Needs Linux and root.""",
)
app.add_typer(cache_app, name="cache")
# Everything after the command's own options belongs to the other program.
PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _fail(message: str, code: int = 1) -> NoReturn:
    typer.echo(f"lab: {message}", err=True)
    raise typer.Exit(code)


def _owner(paths: Paths) -> Owner:
    owner = live_owner(paths)
    if owner is None:
        _fail("the lab is not up; start it with `python -m lab up`")
    return owner


@app.command()
def up(
    share: Annotated[bool, typer.Option("--share", help="Use a lab that another checkout has started.")] = False,
    source: Annotated[
        str, typer.Option(help="What nodes fetch: build (from Go modules) or upstream (the projects' own).")
    ] = "build",
) -> None:
    """Start the lab, building what its mirror serves first if that is not in the cache; does nothing when up."""
    try:
        owner = provider.up(Paths.default(), share=share, source=source)
    except (provider.LabError, LabBusyError, BuildError) as error:
        _fail(str(error))
    typer.echo(f"the lab is up: process {owner.pid} of {owner.folder}, API https://{ADDRESS}:8006")


@app.command()
def down(
    delete: Annotated[bool, typer.Option("--delete", help="Also remove every machine and its disks.")] = False,
) -> None:
    """End the lab: machines shut down, and no process, mount, namespace, cgroup or loop device stays."""
    paths = Paths.default()
    try:
        provider.down(paths)
    except provider.LabError as error:
        _fail(str(error))
    if delete:
        for name in MACHINES:
            shutil.rmtree(paths.state / name, ignore_errors=True)
    typer.echo("the lab is down" + (" and its machines are deleted" if delete else ""))


@app.command()
def status() -> None:
    """Show whether the lab is up, its machines, and what it has on this computer; exit 1 when it is not up."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    paths = Paths.default()
    owner = live_owner(paths)
    left = leftovers.inspect(paths)
    if owner is None:
        typer.echo("the lab is not up" + (f"; a dead one left {left} (`python -m lab down` clears it)" if left else ""))
        raise typer.Exit(1)
    typer.echo(f"up since {owner.started}: process {owner.pid} of {owner.folder}; {left}")
    table = Table()
    for heading in ("id", "name", "state", "memory", "up", "tags"):
        table.add_column(heading, no_wrap=heading != "tags")
    for vm in sorted(_node(owner).qemu.get(), key=lambda vm: int(vm["vmid"])):
        memory, limit = (int(vm.get(key) or 0) // 2**20 for key in ("mem", "maxmem"))
        state = "template" if vm.get("template") else str(vm["status"])
        uptime = f"{vm.get('uptime', 0)} s"
        cells = str(vm["vmid"]), vm.get("name", ""), state, f"{memory}/{limit} MiB", uptime, vm.get("tags", "")
        table.add_row(*cells)
    Console().print(table)


def _find(paths: Paths, node: str) -> int:
    guests = running_guests(paths)
    for vmid, name in guests.items():
        if node in (name, str(vmid)):
            return vmid
    _fail(f"no machine {node} is running; running: {', '.join(guests.values()) or 'none'}")


def _become(owner: Owner, paths: Paths, vmid: int, argv: list[str]) -> NoReturn:
    """Turn this process into the command, so that input, output, terminal and exit code are its own."""
    into_lab = ["nsenter", f"--net=/proc/{owner.pid}/ns/net", f"--mount=/proc/{owner.pid}/ns/mnt", "--wdns=/", "--"]
    command = [*into_lab, *attach_command(paths.run, vmid, argv)]
    sys.stdout.flush()
    os.execvp(command[0], command)


@app.command(name="exec", context_settings=PASS_THROUGH)
def execute(
    context: typer.Context, node: Annotated[str, typer.Argument(metavar="NODE", help="A machine's name or id.")]
) -> None:
    """Run a command as root on a machine: exec NODE -- CMD... ; without one, a shell.

    Input, output, terminal and exit code pass through unchanged.
    """
    if node == "--help":
        typer.echo(context.get_help())
        raise typer.Exit
    paths = Paths.default()
    owner = _owner(paths)
    argv = context.args[1:] if context.args[:1] == ["--"] else context.args
    _become(owner, paths, _find(paths, node), argv or ["/bin/bash", "--login"])


@app.command(context_settings=PASS_THROUGH)
def kubectl() -> None:
    """Run kubectl with the cluster's admin rights on a control-plane machine; all arguments are kubectl's."""
    # The parser drops a `--`, which separates kubectl's own words from those of a command: take them as typed.
    arguments = sys.argv[sys.argv.index("kubectl") + 1 :]
    paths = Paths.default()
    owner = _owner(paths)
    with_cluster = (vmid for vmid in running_guests(paths) if (_root(owner, vmid, paths) / ADMIN_CONF[1:]).exists())
    vmid = next(with_cluster, None)
    if vmid is None:
        _fail(f"no running machine has {ADMIN_CONF}: there is no cluster yet")
    _become(owner, paths, vmid, ["kubectl", f"--kubeconfig={ADMIN_CONF}", *arguments])


def _root(owner: Owner, vmid: int, paths: Paths) -> Path:
    """Reach a running guest's root through the daemon's mounts."""
    return Path(f"/proc/{owner.pid}/root") / str(paths.run / "roots" / str(vmid)).lstrip("/")


def _node(owner: Owner) -> Any:
    """Connect to the lab's own Proxmox VE API, from inside its network."""
    from proxmoxer import ProxmoxAPI  # noqa: PLC0415

    state = Path(owner.state)
    if not namespace.in_network_of(owner.pid):
        namespace.join(owner.pid)
    return ProxmoxAPI(
        ADDRESS,
        user="root@pam",
        token_name="haproof",
        token_value=(state / "api-token").read_text().strip(),
        verify_ssl=str(state / "pve-root-ca.pem"),
        timeout=30,
    ).nodes(NODE)


def _ended(node: Any, upid: str) -> dict[str, Any]:
    state: dict[str, Any] = node.tasks(upid).status.get()
    if state["status"] != "stopped":
        raise NotYet(str(state["status"]))
    return state


def _await_tasks(node: Any, upids: dict[str, str]) -> None:
    """Wait for the tasks (UPID by machine name) and fail with what those that failed say."""
    failed = []
    for name, upid in upids.items():
        state = poll(f"task on {name}", partial(_ended, node, upid), timeout_s=TASK_TIMEOUT_S, interval_s=0.2)
        if state["exitstatus"] != "OK":
            failed.append(f"{name}: {state['exitstatus']}")
    if failed:
        _fail("; ".join(failed))


def _machines(node: Any) -> list[dict[str, Any]]:
    return [vm for vm in node.qemu.get() if not vm.get("template")]


@app.command()
def snapshot(name: str) -> None:
    """Keep the disks of all machines as they are now under a name; those that run are frozen meanwhile."""
    node = _node(_owner(Paths.default()))
    vms = _machines(node)
    running = [vm for vm in vms if node.qemu(vm["vmid"]).status.current.get()["qmpstatus"] == "running"]
    # All of one moment: a database that is kept one machine after another is no database.
    try:
        _await_tasks(node, {vm["name"]: node.qemu(vm["vmid"]).status.suspend.post() for vm in running})
        _await_tasks(node, {vm["name"]: node.qemu(vm["vmid"]).snapshot.post(snapname=name) for vm in vms})
    finally:
        _await_tasks(node, {vm["name"]: node.qemu(vm["vmid"]).status.resume.post() for vm in running})
    typer.echo(f"snapshot {name} of {len(vms)} machines")


@app.command()
def rollback(name: str) -> None:
    """Put the disks of all machines back to a snapshot; those that ran are started again."""
    node = _node(_owner(Paths.default()))
    vms = _machines(node)
    lacking = [vm["name"] for vm in vms if name not in {s["name"] for s in node.qemu(vm["vmid"]).snapshot.get()}]
    if lacking:
        _fail(f"no snapshot {name} of {', '.join(lacking)}; nothing was changed")
    ran = [vm for vm in vms if vm["status"] == "running"]
    _await_tasks(node, {vm["name"]: node.qemu(vm["vmid"]).status.stop.post() for vm in ran})
    _await_tasks(node, {vm["name"]: node.qemu(vm["vmid"]).snapshot(name).rollback.post() for vm in vms})
    _await_tasks(node, {vm["name"]: node.qemu(vm["vmid"]).status.start.post() for vm in ran})
    typer.echo(f"{len(vms)} machines are back at {name}, {len(ran)} started")


@app.command()
def logs(
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines.")] = 100,
) -> None:
    """Show what the lab's daemon and its servers said last."""
    log = Paths.default().state / "lab.log"
    if not log.exists():
        _fail(f"there is no log at {log}: the lab was never started here")
    for line in log.read_text(errors="replace").splitlines()[-lines:]:
        typer.echo(line)


@app.command(name="doctor")
def examine() -> None:
    """Say what this computer lacks to run the lab, and what to do about each; exit 1 when something is missing."""
    missing = provider.misses(Paths.default())
    for miss in missing:
        typer.echo(miss)
    if missing:
        raise typer.Exit(1)
    typer.echo("this computer can run the lab")


@app.command()
def serve(
    content_directory: Annotated[
        Path | None, typer.Option("--content", help="What the mirror serves; built when not given.", exists=True)
    ] = None,
) -> None:
    """Run the lab's daemon in the foreground until Ctrl-C; `up` does this in the background."""
    from lab import supervisor  # noqa: PLC0415

    paths = Paths.default()
    try:
        made = content_directory or content.build(typer.echo, paths)
        supervisor.serve(paths, provider.FOLDER, made)
    except (LabBusyError, BuildError, OSError) as error:
        _fail(str(error))


if __name__ == "__main__":
    app(prog_name="python -m lab")
