"""/nodes/{node}/storage: storages and their volumes."""

from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import Field

from lab.api import shapes
from lab.api.answers import Data
from lab.api.calls import NODE, STORE, Caller
from lab.api.parameters import AtNode, AtStorage, Boolean, Integer, NodeName, Reads, StorageName, Vmid, one_of
from lab.hypervisor import Hypervisor
from lab.refusal import invalid
from lab.storage import Download


class StorageList(AtNode):
    """GET /nodes/{node}/storage."""

    content: str | None = None
    enabled: Boolean = False
    storage: StorageName | None = None
    target: NodeName | None = None


class Content(AtStorage):
    """GET /nodes/{node}/storage/{storage}/content."""

    content: str | None = None
    vmid: Vmid | None = None


class OneVolume(AtStorage):
    """GET /nodes/{node}/storage/{storage}/content/{volume}."""

    volume: str

    @property
    def volid(self) -> str:
        """The volume's full id; raises PVE's 400 when it names another storage."""
        name, colon, _ = self.volume.partition(":")
        if not colon:
            return f"{self.storage}:{self.volume}"
        if name != self.storage:
            raise invalid({"volume": f"storage ID mismatch ({self.storage} != {name})\n"})
        return self.volume


class DeleteVolume(OneVolume):
    """DELETE /nodes/{node}/storage/{storage}/content/{volume}."""

    delay: Annotated[Integer, Field(ge=1, le=30)] | None = None


class DownloadUrl(AtStorage):
    """POST /nodes/{node}/storage/{storage}/download-url."""

    content: Annotated[str, one_of("iso", "vztmpl", "import")]
    filename: Annotated[str, Field(max_length=255)]
    url: Annotated[str, Field(pattern=r"^https?://.*$")]
    checksum: str | None = None
    checksum_algorithm: Annotated[str, one_of(*["md5", "sha1", "sha224", "sha256", "sha384", "sha512"])] | None = Field(
        default=None, alias="checksum-algorithm"
    )
    verify_certificates: Boolean = Field(default=True, alias="verify-certificates")


def add_calls(app: FastAPI, hypervisor: Hypervisor) -> None:
    """Add these calls to `app`."""
    storage = hypervisor.storage

    @app.get(f"{NODE}/storage")
    def storages(asked: Annotated[StorageList, Depends(Reads(StorageList))]) -> Data:
        wanted = set((asked.content or "").replace(";", ",").split(",")) - {""}
        usage = storage.usage()
        return Data(
            [
                shapes.store_listed(store, usage)
                for store in storage.stores.values()
                if asked.storage in (None, store.name) and (not wanted or wanted & set(store.content))
            ]
        )

    @app.get(f"{STORE}/status")
    def status(asked: Annotated[AtStorage, Depends(Reads(AtStorage))]) -> Data:
        if asked.storage not in storage.stores:
            raise invalid({"storage": "No such storage."})
        return Data(shapes.store_status(storage.store(asked.storage), storage.usage()))

    @app.get(f"{STORE}/content")
    def content(asked: Annotated[Content, Depends(Reads(Content))]) -> Data:
        return Data(
            [
                shapes.volume(volume)
                for volume in storage.volumes(asked.storage)
                if asked.content in (None, volume.content) and asked.vmid in (None, volume.vmid)
            ]
        )

    @app.get(f"{STORE}/content/{{volume:path}}")
    def volume(asked: Annotated[OneVolume, Depends(Reads(OneVolume))]) -> Data:
        one = storage.volume(asked.volid)
        path = storage.path(asked.volid) if one.vmid is None else f"/dev/pve/{asked.volid.partition(':')[2]}"
        return Data({"path": str(path), "size": one.size, "used": one.size, "format": one.format})

    @app.delete(f"{STORE}/content/{{volume:path}}")
    def delete_volume(asked: Annotated[DeleteVolume, Depends(Reads(DeleteVolume))], caller: Caller) -> Data:
        upid = hypervisor.remove_volume(asked.volid, caller)
        if asked.delay is None:
            return Data(upid)
        # PVE answers nothing when the removal ended within the delay.
        task = hypervisor.tasks.wait(upid, asked.delay)
        return Data(None if task.exitstatus == "OK" else upid)

    @app.post(f"{STORE}/download-url")
    def download(asked: Annotated[DownloadUrl, Depends(Reads(DownloadUrl))], caller: Caller) -> Data:
        if (asked.checksum is None) != (asked.checksum_algorithm is None):
            given, other = ("checksum", "checksum-algorithm") if asked.checksum else ("checksum-algorithm", "checksum")
            raise invalid({other: f"missing property required by '{given}'"})
        wanted = Download(
            asked.url,
            asked.filename,
            asked.content,
            asked.checksum,
            asked.checksum_algorithm,
            asked.verify_certificates,
        )
        return Data(hypervisor.download(asked.storage, wanted, caller))
