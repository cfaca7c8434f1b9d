"""How another process reaches the guests that are up: their names, and a command run inside one."""

from pathlib import Path

from lab.paths import Paths

GUEST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def attach_command(run: Path, vmid: int, argv: list[str]) -> list[str]:
    """Give the command that runs `argv` as root in a guest; it must itself run in the lab's network."""
    options = ["--clear-env", f"--set-var=PATH={GUEST_PATH}", "--set-var=HOME=/root"]
    return ["lxc-attach", f"--lxcpath={run / 'lxc'}", f"--name={vmid}", *options, "--", *argv]


def running_guests(paths: Paths) -> dict[int, str]:
    """List the names of the guests that are up, by id."""
    names = {}
    for config in (paths.run / "lxc").glob("*/config"):
        settings = dict(line.split(" = ", 1) for line in config.read_text().splitlines() if " = " in line)
        names[int(config.parent.name)] = settings["lxc.uts.name"]
    return dict(sorted(names.items()))
