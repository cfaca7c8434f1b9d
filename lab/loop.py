"""Loop devices: files as disks (loop(4)). What mounts one leaves it to the mount, with which it goes."""

import subprocess
from contextlib import suppress
from pathlib import Path


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
    found = subprocess.run(
        ["losetup", "--find", "--show", "--direct-io=on", file], capture_output=True, text=True, check=False
    )
    if found.returncode:
        raise OSError(found.stderr.strip())
    return Path(found.stdout.strip())


def release(device: Path) -> None:
    """Let go of a device at once, or with the mount that still needs it; raises OSError."""
    done = subprocess.run(["losetup", "--detach", device], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip())
