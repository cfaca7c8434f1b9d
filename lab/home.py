"""A guest's home: where its disk lies on this machine, and what else belongs to it."""

from dataclasses import dataclass
from pathlib import Path

from lab.disk import Disk


@dataclass(frozen=True)
class Home:
    """A folder for each guest."""

    folder: Path

    @property
    def disk(self) -> Disk:
        """The guest's disk."""
        return Disk(self.folder / "disk.raw")

    def snapshot(self, name: str) -> Disk:
        """The copy of the disk that is the snapshot of this name."""
        return Disk(self.folder / "snapshots" / name)

    @property
    def booted(self) -> Path:
        """Exists once the guest has had its first boot."""
        return self.folder / "booted"

    @property
    def unplugged(self) -> Path:
        """Holds a file for each cable that is unplugged, named as the cable."""
        return self.folder / "unplugged"

    @property
    def cable_script(self) -> Path:
        """Called by LXC when a cable was made, also at a reboot from inside: keeps an unplugged one so."""
        return self.folder / "cable"

    @property
    def console_log(self) -> Path:
        """What init and the kernel's console said."""
        return self.folder / "console.log"

    @property
    def lxc_log(self) -> Path:
        """What LXC said."""
        return self.folder / "lxc.log"
