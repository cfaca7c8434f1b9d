"""The two storages of the lab's node: `local`, a directory of files, and `local-lvm`, the guests' disks."""

import hashlib
import hmac
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from lab import vmconfig
from lab.durable import sync_directory
from lab.inventory import Inventory
from lab.refusal import Refusal, invalid
from lab.tasks import Log

IMAGES = "local-lvm"
FILES = "local"
SUBDIRECTORIES = {"import": "import", "iso": "template/iso", "snippets": "snippets"}
EXTENSIONS = {"import": r"\.(?:raw|qcow2|vmdk)", "iso": r"\.(?:iso|img)", "snippets": ""}
CLOUD_INIT_BYTES = 4 * vmconfig.MIB  # what PVE gives the generated drive
CHUNK_BYTES = vmconfig.MIB


@dataclass(frozen=True)
class Volume:
    """A file or disk; `used` and `size` in bytes, `ctime` in seconds since 1970."""

    volid: str
    content: str
    format: str
    size: int
    ctime: int
    vmid: int | None = None


@dataclass(frozen=True)
class Store:
    """A storage: what PVE calls its type and the content it takes."""

    name: str
    type: str
    content: tuple[str, ...]


@dataclass(frozen=True)
class Usage:
    """Bytes of the file system below a storage."""

    total: int
    used: int
    avail: int


@dataclass(frozen=True)
class Download:
    """What to fetch: a file of `content` named `filename`, to be of this checksum if one is given."""

    url: str
    filename: str
    content: str
    checksum: str | None = None
    algorithm: str | None = None
    verify_certificates: bool = True


class Storage:
    """The node's storages. `local-lvm` holds what the VMs' configurations name; the driver keeps the disks."""

    def __init__(self, directory: Path, inventory: Inventory) -> None:
        self._files = directory / FILES
        self._inventory = inventory
        self.stores = {
            FILES: Store(FILES, "dir", ("import", "iso", "snippets")),
            IMAGES: Store(IMAGES, "lvmthin", ("images",)),
        }
        for content in SUBDIRECTORIES.values():
            (self._files / content).mkdir(parents=True, exist_ok=True)
            for leftover in (self._files / content).glob(".*.part"):
                leftover.unlink()

    def store(self, name: str) -> Store:
        """Find a storage; raises PVE's refusal when there is none."""
        if name not in self.stores:
            raise Refusal(500, f"storage '{name}' does not exist")
        return self.stores[name]

    def usage(self) -> Usage:
        """The file system's size; both storages share it."""
        usage = shutil.disk_usage(self._files)
        return Usage(usage.total, usage.used, usage.free)

    def volumes(self, name: str) -> Iterator[Volume]:
        """What a storage holds, by volume id."""
        store = self.store(name)
        found = self._images() if store.name == IMAGES else self._file_volumes()
        yield from sorted(found, key=lambda volume: volume.volid)

    def volume(self, volid: str) -> Volume:
        """Find a volume; raises PVE's refusal when there is none."""
        name, colon, _ = volid.partition(":")
        if not colon:
            raise invalid({"volume": f"unable to parse volume ID '{volid}'\n"})
        found = next((volume for volume in self.volumes(name) if volume.volid == volid), None)
        if found is None:
            raise Refusal(500, f"volume_size_info on '{volid}' failed - no format")
        return found

    def path(self, volid: str) -> Path:
        """Where a file of `local` lies; raises PVE's refusal when it is not there."""
        volume = self.volume(volid)
        return self._files / SUBDIRECTORIES[volume.content] / volid.partition("/")[2]

    def import_image(self, volid: str) -> Path:
        """The raw image that `import-from=volid` means; raises Refusal."""
        volume = self.volume(volid)
        if volume.content != "import":
            raise Refusal(500, f"unable to use volume {volid} - content type needs to be 'import'")
        if volume.format != "raw":
            raise Refusal(500, f"cannot import {volid}: the lab's guests start from raw images only")
        return self.path(volid)

    def check_download(self, name: str, wanted: Download) -> None:
        """Raise PVE's refusal of a download that no task needs to try."""
        store = self.store(name)
        if store.type != "dir":
            raise Refusal(500, f"can't upload to storage type '{store.type}', not a file based storage!")
        if wanted.content not in store.content:
            raise Refusal(500, f"storage '{name}' is not configured for content-type '{wanted.content}'")
        if not re.fullmatch(rf"(?!\.)[\w.+=@ -]+{EXTENSIONS[wanted.content]}", wanted.filename, re.ASCII):
            wrong = "wrong file extension" if wanted.content == "iso" else "invalid filename or wrong extension"
            raise invalid({"filename": wrong})

    def download(self, wanted: Download, log: Log) -> None:
        """Fetch a file into `local`; it is there whole and as the checksum says, or not at all.

        Raises Refusal, OSError (disk full) or httpx.HTTPError.
        """
        target = self._files / SUBDIRECTORIES[wanted.content] / wanted.filename
        if target.exists():
            self._accept_existing(target, wanted, log)
            return
        log(f"downloading {wanted.url} to {target}")
        part = target.with_name(f".{target.name}.{os.urandom(4).hex()}.part")
        try:
            checksum = self._fetch(wanted, part)
            if wanted.checksum:
                self._compare(checksum, wanted.checksum, "checksum mismatch: ")
                log("checksum verified")
            part.replace(target)
            sync_directory(target.parent)
        finally:
            part.unlink(missing_ok=True)
        log(f"download of '{wanted.url}' to '{target}' finished: {target.stat().st_size} bytes")

    def remove(self, volid: str) -> None:
        """Delete a file of `local`; one that is not there is no error, as in PVE's task."""
        if any(volume.volid == volid for volume in self._file_volumes()):
            path = self.path(volid)
            path.unlink()
            sync_directory(path.parent)

    def check_removal(self, volid: str) -> None:
        """Raise PVE's refusal to remove a disk from under a VM."""
        name, _, volume = volid.partition(":")
        self.store(name)
        owner = re.match(r"(?:vm|base)-(\d+)-", volume)
        if name == IMAGES and owner and int(owner[1]) in self._inventory:
            raise Refusal(500, f"Cannot remove image, a guest with VMID '{owner[1]}' exists!")

    def _accept_existing(self, target: Path, wanted: Download, log: Log) -> None:
        if not wanted.checksum or not wanted.algorithm:
            raise Refusal(500, f"refusing to override existing file '{target}'")
        log("calculating checksum of existing file...")
        with target.open("rb") as file:
            checksum = hashlib.file_digest(file, wanted.algorithm).hexdigest()
        self._compare(checksum, wanted.checksum, "existing file: checksum mismatch: ")
        log("OK, got correct file already, no need to download")

    @staticmethod
    def _compare(got: str, expected: str, what: str) -> None:
        if not hmac.compare_digest(got, expected.lower()):
            raise Refusal(500, f"{what}got '{got}' != expect '{expected}'")

    @staticmethod
    def _fetch(wanted: Download, part: Path) -> str:
        """Stream the file to `part` and return its checksum."""
        checksum = hashlib.new(wanted.algorithm or "sha256")
        with (
            httpx.Client(verify=wanted.verify_certificates, follow_redirects=True, trust_env=False) as client,
            client.stream("GET", wanted.url, timeout=60.0) as response,
            part.open("xb") as file,
        ):
            if not response.is_success:
                raise Refusal(500, f"download of '{wanted.url}' failed: HTTP status {response.status_code}")
            for chunk in response.iter_bytes(CHUNK_BYTES):
                checksum.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        return checksum.hexdigest()

    def _file_volumes(self) -> Iterator[Volume]:
        for content, subdirectory in SUBDIRECTORIES.items():
            for path in (self._files / subdirectory).iterdir():
                if path.name.startswith("."):
                    continue
                status = path.stat()
                volid = f"{FILES}:{content}/{path.name}"
                kind = path.suffix.removeprefix(".") if content != "snippets" else "snippet"
                yield Volume(volid, content, kind, status.st_size, int(status.st_mtime))

    def _images(self) -> Iterator[Volume]:
        for machine in self._inventory:
            made = re.search(r"ctime=(\d+)", str(machine.config.get("meta", "")))
            for _, drive in vmconfig.drives(machine.config):
                if drive.storage == IMAGES:
                    size = CLOUD_INIT_BYTES if drive.is_cloudinit else drive.size_bytes
                    yield Volume(drive.volume, "images", "raw", size, int(made[1]) if made else 0, machine.vmid)
