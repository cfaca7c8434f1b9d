"""The mirror's decisions, and its proxy against an archive that misbehaves."""

import asyncio
import errno
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from environments.load import find, load
from lab.cache import BuildError, Cache, Progress, Recipe
from lab.mirror import apt, versions
from lab.mirror.aptproxy import ATTEMPTS_HELD, Archive, Download, is_immutable
from lab.mirror.content import URL, build_all, recipes
from lab.mirror.debs import PACKAGES, REPOSITORY
from lab.mirror.images import IMAGES, registry_config
from lab.mirror.manifests import MANIFESTS

LISTING = """\
http://archive.invalid/debian|bookworm|main
http://archive.invalid/debian/|bookworm|contrib
http://archive.invalid/security|bookworm-security|main
https://elsewhere.invalid|nodistro|main
"""


def client_of(tmp_path: Path, answer: Callable[[httpx.Request], httpx.Response]) -> TestClient:
    upstream = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    archive = Archive("http://archive.invalid/debian/", tmp_path / "kept", upstream)
    return TestClient(Starlette(routes=[Route("/debian/bookworm/{path:path}", archive.serve)]))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(_: float) -> None:
        return None

    monkeypatch.setattr("lab.mirror.aptproxy.asyncio.sleep", at_once)
    assert asyncio.sleep is at_once


def test_sources_are_the_machines_own_by_suite() -> None:
    assert apt.parse(LISTING, "bookworm") == (
        apt.Source("http://archive.invalid/debian/", "bookworm", ("main", "contrib")),
        apt.Source("http://archive.invalid/security/", "bookworm-security", ("main",)),
    )


@pytest.mark.parametrize(
    ("path", "so"),
    [
        ("pool/main/c/containerd/containerd_1_amd64.deb", True),
        ("dists/bookworm/main/binary-amd64/by-hash/SHA256/00", True),
        ("dists/bookworm/InRelease", False),
    ],
)
def test_only_files_that_never_change_are_kept_unasked(path: str, so: bool) -> None:
    assert is_immutable(path) is so


def test_a_package_is_fetched_once(tmp_path: Path) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(200, content=b"a package")

    with client_of(tmp_path, answer) as client:
        for _ in range(2):
            assert client.get("/debian/bookworm/pool/a.deb").content == b"a package"
    assert asked == ["/debian/pool/a.deb"]


def test_an_index_is_asked_for_again_and_kept_when_unchanged(tmp_path: Path) -> None:
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("if-modified-since"))
        if seen[-1]:
            return httpx.Response(304)
        return httpx.Response(200, content=b"index", headers={"last-modified": "Sat, 01 Nov 2025 00:00:00 GMT"})

    with client_of(tmp_path, answer) as client:
        for _ in range(2):
            assert client.get("/debian/bookworm/dists/bookworm/InRelease").content == b"index"
    assert seen == [None, "Sat, 01 Nov 2025 00:00:00 GMT"]


def test_a_missing_file_is_missing_at_once(tmp_path: Path) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(404)

    with client_of(tmp_path, answer) as client:
        assert client.get("/debian/bookworm/pool/none.deb").status_code == 404
    assert len(asked) == 1


def test_an_archive_that_does_not_answer_is_asked_again(tmp_path: Path) -> None:
    replies: Iterator[httpx.ConnectTimeout | httpx.Response] = iter(
        [httpx.ConnectTimeout("slow"), httpx.Response(503), httpx.Response(200, content=b"late")]
    )

    def answer(request: httpx.Request) -> httpx.Response:
        reply = next(replies)
        if isinstance(reply, httpx.ConnectTimeout):
            raise reply
        return reply

    with client_of(tmp_path, answer) as client:
        assert client.get("/debian/bookworm/pool/a.deb").content == b"late"


async def broken(body: bytes) -> AsyncIterator[bytes]:
    yield body
    raise httpx.ReadError("cut")


@pytest.mark.parametrize("path", ["pool/a.deb", "dists/bookworm/InRelease"])
def test_a_download_that_breaks_is_never_served(tmp_path: Path, path: str) -> None:
    with client_of(tmp_path, lambda _: httpx.Response(200, content=broken(b"half"))) as client:
        assert client.get(f"/debian/bookworm/{path}").status_code == 504
    assert [path for path in (tmp_path / "kept").rglob("*") if path.is_file()] == []


def test_a_download_that_breaks_while_it_is_passed_on_breaks_for_the_node_too(tmp_path: Path) -> None:
    async def read() -> list[bytes]:
        download, read = Download(tmp_path / "partial"), []
        download.answered({"content-length": "100"})
        download.write(b"half")
        following = download.follow()
        read.append(await anext(following))
        download.end(HTTPException(504))
        with pytest.raises(HTTPException):
            await anext(following)
        return read

    assert asyncio.run(read()) == [b"half"]
    assert not (tmp_path / "partial").exists()


@pytest.mark.parametrize("resumes", [True, False])
def test_a_download_goes_on_where_it_broke_off(tmp_path: Path, resumes: bool) -> None:
    ranges = []

    def answer(request: httpx.Request) -> httpx.Response:
        ranges.append(request.headers.get("range"))
        if not ranges[-1]:
            return httpx.Response(200, content=broken(b"half of "), headers={"content-length": "14"})
        return httpx.Response(206, content=b"a pack") if resumes else httpx.Response(200, content=b"half of a pack")

    with client_of(tmp_path, answer) as client:
        assert client.get("/debian/bookworm/pool/a.deb").content == b"half of a pack"
    assert ranges == [None, "bytes=8-"]
    assert (tmp_path / "kept/pool/a.deb").read_bytes() == b"half of a pack"


def test_a_package_is_passed_on_while_it_arrives_and_once_to_all(tmp_path: Path) -> None:
    asked, last_may_come = [], asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await last_may_come.wait()
        yield b" last"

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(200, content=body())

    async def first_then_rest(reply: Response) -> tuple[bytes, bytes]:
        assert isinstance(reply, StreamingResponse)
        chunks = [bytes(chunk) async for chunk in _noting(reply.body_iterator, last_may_come)]
        return chunks[0], b"".join(chunks)

    async def two_nodes() -> list[tuple[bytes, bytes]]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as upstream:
            archive = Archive("http://archive.invalid/", tmp_path, upstream)
            scope = {"type": "http", "path_params": {"path": "pool/a.deb"}}
            replies = [await archive.serve(Request(scope)) for _ in range(2)]
            return list(await asyncio.gather(*(first_then_rest(reply) for reply in replies)))

    assert asyncio.run(two_nodes()) == [(b"first", b"first last")] * 2
    assert asked == ["/pool/a.deb"]


async def _noting(chunks: AsyncIterable[object], seen: asyncio.Event) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        seen.set()
        assert isinstance(chunk, bytes)
        yield chunk


def test_a_full_disk_is_said_to_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Download, chunk: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Download, "write", full)
    with client_of(tmp_path, lambda _: httpx.Response(200, content=b"index")) as client:
        reply = client.get("/debian/bookworm/dists/bookworm/InRelease")
    assert reply.status_code == 507
    assert "no room" in reply.text
    assert [path for path in (tmp_path / "kept").rglob("*") if path.is_file()] == []


def test_a_kept_index_is_served_while_the_archive_is_away(tmp_path: Path) -> None:
    kept = tmp_path / "kept/dists/bookworm/InRelease"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"yesterday's")

    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        raise httpx.ConnectError("away")

    with client_of(tmp_path, answer) as client:
        for _ in range(3):
            assert client.get("/debian/bookworm/dists/bookworm/InRelease").content == b"yesterday's"
    assert len(asked) == ATTEMPTS_HELD  # then it is known to be away


def test_a_path_cannot_leave_the_archive(tmp_path: Path) -> None:
    with client_of(tmp_path, lambda _: httpx.Response(200, content=b"x")) as client:
        assert client.get("/debian/bookworm/pool/%2e%2e/%2e%2e/etc/passwd").status_code == 404


def test_the_lab_fetches_what_the_mirror_serves() -> None:
    environment = load(find("lab"))
    assert str(environment.kubernetes.packages.url).rstrip("/") == f"{URL}/{REPOSITORY}"
    for manifest in (environment.metallb.manifest, environment.kubernetes.cni.manifest):
        assert str(manifest.url).removeprefix(f"{URL}/manifests/") in MANIFESTS
    assert environment.metallb.version == versions.METALLB
    assert environment.kubernetes.cni.version == versions.FLANNEL
    assert versions.KUBERNETES.startswith(f"{environment.kubernetes.version}.")


def test_recipes_come_after_what_they_need() -> None:
    seen: set[str] = set()
    for recipe in recipes():
        assert {need.name for need in recipe.needs} <= seen
        seen.add(recipe.name)


def test_after_a_failure_nothing_more_is_begun(tmp_path: Path) -> None:
    begun = []

    @dataclass
    class Failing:
        name: str
        needs: Sequence[Recipe] = ()

        def inputs(self) -> bytes:
            return b""

        def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
            begun.append(self.name)
            raise BuildError("no")

    first, second = Failing("first"), Failing("second")
    ordered = [first, second, Failing("last", [second])]
    with pytest.raises(BuildError, match=r"^no$"):
        build_all(Cache(tmp_path), ordered, lambda _: None)
    assert begun == ["first"]


def test_names_of_images_do_not_collide_where_registries_share_one_storage() -> None:
    names = [(image.name, image.tag) for image in IMAGES]
    assert len(set(names)) == len(names)


def test_kubelet_and_kubeadm_depend_on_what_kubeadm_checks_for() -> None:
    control = {package.name: package.control(package.version) for package in PACKAGES}
    for needed in ("conntrack", "socat", "ethtool", "kubernetes-cni"):
        assert needed in control["kubelet"]
    assert "kubelet (>= 1.30.4)" in control["kubeadm"]


def test_the_served_registry_is_read_only(tmp_path: Path) -> None:
    config = json.loads(json.dumps(registry_config(tmp_path, "127.0.0.1:1", read_only=True)))
    assert config["storage"]["maintenance"]["readonly"]["enabled"] is True
