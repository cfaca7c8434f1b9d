"""The projects' own files, fetched from a local server that is laid out as theirs are."""

import hashlib
import subprocess
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lab.cache import BuildError, Recipe, key
from lab.mirror import upstream
from lab.mirror.content import assembly, recipes
from lab.mirror.debs import REPOSITORY
from lab.mirror.images import registry
from lab.mirror.upstream import (
    FetchedImages,
    FetchedLicences,
    FetchedManifests,
    FetchedPackages,
    newest,
    stanzas,
)
from tests.served import served


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; answers 503 as often as the server still has to."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.asked.append(self.path)
        if server.unwell > 0:
            server.unwell -= 1
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            super().do_GET()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "served")))
    server.asked, server.unwell = [], 0
    server.folder = tmp_path / "served"
    server.url = f"http://127.0.0.1:{server.server_port}/"
    server.folder.mkdir()
    with served(server):
        yield server


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream.fetch.retry, "sleep", lambda _: None)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def publish(folder: Path, kubeadm: bytes = b"kubeadm 1.30.10") -> None:
    """A repository with two releases of each package, the older one listed last."""
    index = []
    for name in upstream.PACKAGES:
        for version in ("1.30.10-1.1", "1.30.9-1.1"):
            content = kubeadm if (name, version) == ("kubeadm", "1.30.10-1.1") else f"{name} {version}".encode()
            path = f"amd64/{name}_{version}_amd64.deb"
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(content)
            index.append(
                f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nFilename: {path}\n"
                f"SHA256: {sha256(content)}\n"
            )
    packages = "\n".join(index).encode()
    (folder / "Packages").write_bytes(packages)
    (folder / "Release").write_text(f"Suite: stable\nSHA256:\n {sha256(packages)} {len(packages)} Packages\n")
    for name in ("InRelease", "Release.gpg", "Release.key"):
        (folder / name).write_text(name)


def silent(_: str) -> None:
    """Hear nothing."""


def build(recipe: Recipe, into: Path) -> Path:
    into.mkdir()
    recipe.build(into, {}, silent)
    return into


def test_the_newest_packages_are_laid_out_as_the_built_ones(server: Any, tmp_path: Path) -> None:
    publish(server.folder)
    made = build(FetchedPackages(server.url), tmp_path / "made") / REPOSITORY
    assert sorted(path.name for path in (made / "amd64").iterdir()) == sorted(
        f"{name}_1.30.10-1.1_amd64.deb" for name in upstream.PACKAGES
    )
    for name in ("Packages", "Release", "InRelease", "Release.gpg", "Release.key"):
        assert (made / name).read_bytes() == (server.folder / name).read_bytes()


def test_a_package_that_is_another_than_listed_is_refused(server: Any, tmp_path: Path) -> None:
    publish(server.folder)
    (server.folder / "amd64/kubelet_1.30.10-1.1_amd64.deb").write_bytes(b"something else")
    with pytest.raises(BuildError, match=rf"kubelet_1.30.10.*expected sha256 .*found {sha256(b'something else')}"):
        build(FetchedPackages(server.url), tmp_path / "made")


def test_an_index_that_is_another_than_released_is_refused(server: Any, tmp_path: Path) -> None:
    publish(server.folder)
    with (server.folder / "Packages").open("a") as index:
        index.write("\nPackage: more\n")
    with pytest.raises(BuildError, match="Packages is not what it should be"):
        build(FetchedPackages(server.url), tmp_path / "made")


def test_an_index_cannot_name_files_outside_of_the_repository(server: Any, tmp_path: Path) -> None:
    publish(server.folder)
    index = (server.folder / "Packages").read_text().replace("Filename: amd64/kubectl", "Filename: ../../../../kubectl")
    (server.folder / "Packages").write_text(index)
    (server.folder / "Release").write_text(f"SHA256:\n {sha256(index.encode())} 1 Packages\n")
    with pytest.raises(BuildError, match="names a file outside of it"):
        build(FetchedPackages(server.url), tmp_path / "made")


def test_a_missing_file_is_final(server: Any, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="answers 404, which is final"):
        build(FetchedPackages(server.url), tmp_path / "made")
    assert len(server.asked) == 1


def test_a_host_that_is_unwell_is_asked_again(server: Any) -> None:
    (server.folder / "file").write_text("late")
    server.unwell = 2
    assert upstream.fetch(server.url + "file") == b"late"


def test_a_host_that_stays_unwell_is_told_as_such(server: Any) -> None:
    server.unwell = 99
    with pytest.raises(BuildError, match=r"answers 503; try again later"):
        upstream.fetch(server.url + "file")
    assert len(server.asked) == 4


def test_a_manifest_that_is_not_the_pinned_one_is_refused(server: Any, tmp_path: Path) -> None:
    (server.folder / "manifest").write_text("kind: Other")
    urls = dict.fromkeys(upstream.MANIFEST_URLS, server.url + "manifest")
    with pytest.raises(BuildError, match="is not what it should be: expected sha256"):
        build(FetchedManifests(urls), tmp_path / "made")


def test_the_licence_of_each_project_lies_beside_what_was_fetched(server: Any, tmp_path: Path) -> None:
    for path in upstream.LICENCES:
        (server.folder / path).parent.mkdir(parents=True)
        (server.folder / path).write_text(path)
    made = build(FetchedLicences(server.url + "{}"), tmp_path / "made")
    kept = {path.read_text() for path in (made / "licences").glob("*/*")}
    assert kept == {*upstream.LICENCES}


def test_every_manifest_is_pinned() -> None:
    assert set(upstream.MANIFEST_URLS) == set(upstream.pinned())


def test_versions_are_compared_as_dpkg_does() -> None:
    listed = stanzas(
        "Package: a\nVersion: 1.9\nArchitecture: amd64\n\nPackage: a\nVersion: 1.10\nArchitecture: amd64\n"
    )
    assert newest(listed, "a")["Version"] == "1.10"


def test_another_source_is_another_content_and_an_unknown_one_is_refused() -> None:
    assert key(assembly("build")) != key(assembly("upstream"))
    # Of MySQL NDB Cluster and Helm nothing is fetched: they are built for both.
    built = {"mysql-debian", "mysql", "ndb", "signing-key", "mysql-packages", "helm", "helm-packages", "charts"}
    built |= {"cloudflare-packages"}
    fetched = {"template", "images", "packages", "manifests", "projects", "content"}
    assert {recipe.name for recipe in recipes("upstream")} == fetched | built
    with pytest.raises(BuildError, match="no source 'elsewhere'; expected one of: build, upstream"):
        assembly("elsewhere")


@pytest.mark.lab
def test_images_are_copied_for_the_kubeadm_that_was_fetched(tmp_path: Path) -> None:
    """A kubeadm of our own asks for one image; a local registry holds it and all the others."""
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        "Package: kubeadm\nVersion: 1\nArchitecture: amd64\nMaintainer: test\nDescription: test\n"
    )
    (root / "usr/bin").mkdir(parents=True)
    program = root / "usr/bin/kubeadm"
    program.write_text('#!/bin/sh\n[ "$1" = version ] && echo v1.30.10 || echo registry.k8s.io/pause:3.9\n')
    program.chmod(0o755)
    subprocess.run(["dpkg-deb", "--build", root, tmp_path / "kubeadm.deb"], check=True, capture_output=True)
    layout, source, made = tmp_path / "layout", tmp_path / "source", tmp_path / "made"
    made.mkdir()
    subprocess.run(["umoci", "init", "--layout", layout], check=True)
    subprocess.run(["umoci", "new", "--image", f"{layout}:one"], check=True)
    with registry(source) as address:
        fetched = FetchedImages(kubernetes=address, others=dict.fromkeys(upstream.REGISTRIES, address), insecure=True)
        wanted = ["pause:3.9", *fetched._besides()]
        for name in wanted:
            destination = ["--dest-tls-verify=false", f"oci:{layout}:one", f"docker://{address}/{name}"]
            subprocess.run(["skopeo", "--insecure-policy", "copy", "--quiet", *destination], check=True)
        fetched.build(made, {"packages": tmp_path}, silent)
    repositories = made / "registry/docker/registry/v2/repositories"
    for name in wanted:
        image, _, tag = name.rpartition(":")
        assert (repositories / image / "_manifests/tags" / tag / "current/link").exists()
