"""A guest's disk: an ext4 file system, without partitions, in a file that is only as large as what was written."""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from lab import loop, namespace
from lab.tool import run
from provisioning.poll import NotYet, poll

RELEASE_TIMEOUT_S = 30.0
# What a guest removes takes no room on the machine any more. And the kernel writes nothing of its own accord: it would
# clear tables of inodes beside whoever copies the disk.
MOUNT_OPTIONS = "discard,noinit_itable"
MENDED = 1  # e2fsck(8): errors were there, and are not any more
EXT4_IOC_CHECKPOINT = 0x4004662B  # linux/ext4.h


@dataclass(frozen=True)
class Disk:
    """A disk by its file; what is done to it raises OSError with what the tool said."""

    image: Path

    def copy_from(self, source: "Disk") -> None:
        """Be what `source` is, in one step: it is copied beside this file first."""
        unfinished = self.image.with_name(f".{self.image.name}")
        run("cp", "--reflink=auto", "--sparse=always", source.image, unfinished)
        unfinished.replace(self.image)

    def mount(self, root: Path, size_bytes: int) -> None:
        """Put the disk in its place, at least `size_bytes` large; raises OSError and DeadlineExceeded."""
        root.mkdir(parents=True, exist_ok=True)
        self._await_release()
        self._grow(size_bytes)
        device = loop.attach(self.image)
        try:
            namespace.mount(str(device), root, "ext4", options=MOUNT_OPTIONS)
        finally:
            loop.release(device)

    def unmount(self, root: Path) -> None:
        """Returns when nothing more is written to the disk; raises OSError and DeadlineExceeded."""
        if root.is_mount():
            namespace.unmount(root)
        self._await_release()
        if root.is_dir():
            root.rmdir()

    def _await_release(self) -> None:
        """Wait until no device has the disk: two of them would spoil it. Raises DeadlineExceeded."""

        def released() -> bool:
            if held := [name for name, file in loop.devices().items() if file == str(self.image)]:
                raise NotYet(f"{held[0]} has it")
            return True

        poll(f"release of {self.image}", released, timeout_s=RELEASE_TIMEOUT_S, interval_s=0.01)

    def _grow(self, size_bytes: int) -> None:
        """Let the disk and its file system be as large as declared; one cut short is begun again at the next mount.

        Not while it is mounted, as cloud-init does: that takes a privilege which root has not everywhere.
        """
        if self.image.stat().st_size > size_bytes:
            return
        run("e2fsck", "-p", self.image, most=MENDED)
        os.truncate(self.image, size_bytes)
        # Forced, as it else wants every block looked at first.
        run("resize2fs", "-f", self.image)


def settle(root: Path) -> None:
    """Bring everything that was written below a disk's mount to its place on the disk; raises OSError.

    From the file system's journal too: else a copy might have the journal's beginning from after, and a block from
    before that.
    """
    run("sync", "--file-system", root)
    directory = os.open(root, os.O_RDONLY)
    try:
        fcntl.ioctl(directory, EXT4_IOC_CHECKPOINT, bytes(4))
    finally:
        os.close(directory)
