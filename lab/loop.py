"""Loop devices: files as disks (loop(4)). What mounts one leaves it to the mount, with which it goes."""

from contextlib import suppress
from pathlib import Path

from lab.tool import run


def devices() -> dict[str, str]:
    """Every device that is in use, by name, with the file behind it as the kernel names it."""
    found = {}
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        # Detached between the listing and the read.
        with suppress(OSError):
            found[file.parts[3]] = file.read_text().strip()
    return found


def attach(file: Path) -> Path:
    """The device that the file is now; raises OSError.

    The file's blocks are cached once, as the device's, and not a second time below it.
    """
    return Path(run("losetup", "--find", "--show", "--direct-io=on", file).strip())


def release(device: Path) -> None:
    """Let go of a device at once, or with the mount that still needs it; raises OSError."""
    run("losetup", "--detach", device)
