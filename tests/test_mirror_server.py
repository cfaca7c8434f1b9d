"""The mirror's pages as nodes ask for them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from lab.mirror.apt import Source
from lab.mirror.debs import REPOSITORY
from lab.mirror.server import create_app


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """A mirror over content laid out as `Assembly` lays it out, by links."""
    for path, text in {
        "parts/manifests/m.yaml": "kind: m",
        "parts/template/image.raw": "0123456789",
        f"parts/packages/{REPOSITORY}/InRelease": "signed",
        "parts/licences/LICENSE": "free",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    content = tmp_path / "content"
    (content / "licences").mkdir(parents=True)
    for name in ("manifests", "template", "packages"):
        (content / name).symlink_to(tmp_path / "parts" / name)
    (content / "licences/etcd").symlink_to(tmp_path / "parts/licences")
    sources = [Source("http://archive.invalid/debian/", "bookworm", ("main",))]
    with TestClient(create_app(content, sources, tmp_path / "apt")) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/manifests/m.yaml", "kind: m"),
        ("/images/image.raw", "0123456789"),
        (f"/{REPOSITORY}/InRelease", "signed"),
        ("/licences/etcd/LICENSE", "free"),
    ],
)
def test_content_is_served_where_the_environment_looks_for_it(client: TestClient, path: str, text: str) -> None:
    assert client.get(path).text == text


def test_a_part_of_a_file_and_its_size_can_be_asked_for(client: TestClient) -> None:
    part = client.get("/images/image.raw", headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.text) == (206, "234")
    whole = client.head("/images/image.raw")
    assert (whole.status_code, whole.headers["content-length"], whole.content) == (200, "10", b"")


def test_the_index_tells_what_there_is(client: TestClient) -> None:
    assert client.get("/").text == client.get("/index").text
    for line in (f"/{REPOSITORY}/", "/debian/bookworm/", "/licences/etcd/"):
        assert line in client.get("/index").text


def test_what_is_not_there_is_missing(client: TestClient) -> None:
    assert client.get("/images/other.raw").status_code == 404
    assert client.get("/manifests/../apt").status_code == 404
