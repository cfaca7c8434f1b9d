"""MySQL NDB Cluster for Debian 12, named and split as MySQL's own apt repository has it.

Debian has NDB in no stable release. Its newest one ships the SQL server with the NDB engine, and the source, from
which the cluster's own programs are compiled here; the server brings the libraries that it was linked with.
"""

import gzip
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.cache import BuildError, Progress, Recipe
from lab.mirror import versions
from lab.mirror.bootstrap import bootstrap, keep_licences
from lab.mirror.command import run
from lab.mirror.debs import Package, Repository
from lab.mirror.images import merge_usr
from lab.mirror.signing import SigningKey

DEBIAN_PACKAGES = ("mysql-server-core", "mysql-client-core", "mysql-source")
CLUSTER_PROGRAMS = ("ndb_mgmd", "ndb_mgm", "ndb_waiter", "ndb_config", "ndb_desc", "ndb_restore", "ndbmtd")
CLIENT_PROGRAMS = ("mysql", "mysqladmin", "mysqldump")
LIBRARIES = "/usr/lib/mysql-cluster"
LOADER = "ld-linux-x86-64.so.2"
NINJA_TIMEOUT_S = 3600
# Only the cluster's programs are made: whatever they do without is left out, and what Debian has is taken from there.
CMAKE_OPTIONS = {
    "WITHOUT_SERVER": "OFF",  # ON takes the NDB targets away with it
    "WITH_NDB": "ON",
    "WITH_NDB_JAVA": "OFF",
    "WITH_NDB_TEST": "OFF",
    "WITH_NDBAPI_EXAMPLES": "OFF",
    "WITH_UNIT_TESTS": "OFF",
    "WITH_ROUTER": "OFF",
    "WITH_LTO": "OFF",
    "WITH_SYSTEM_LIBS": "OFF",
    "WITH_SSL": "system",
    "WITH_ZLIB": "system",
    "WITH_ZSTD": "system",
    "WITH_LZ4": "system",
    "WITH_PROTOBUF": "bundled",
    "WITH_CURL": "none",
    "WITH_FIDO": "none",
    "WITH_KERBEROS": "none",
    "WITH_AUTHENTICATION_CLIENT_PLUGINS": "OFF",
    "WITH_AUTHENTICATION_FIDO": "OFF",
    "WITH_AUTHENTICATION_KERBEROS": "OFF",
    "WITH_AUTHENTICATION_LDAP": "OFF",
    "WITH_AUTHENTICATION_WEBAUTHN": "OFF",
    "FORCE_UNSUPPORTED_COMPILER": "1",
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_C_FLAGS_RELEASE": "-O1 -DNDEBUG",
    "CMAKE_CXX_FLAGS_RELEASE": "-O1 -DNDEBUG",
}
POSTINST = """\
#!/bin/sh
set -e
getent group mysql >/dev/null || groupadd --system mysql
getent passwd mysql >/dev/null || \\
    useradd --system --gid mysql --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin mysql
install -d -o mysql -g mysql -m 750 /var/lib/mysql-files
"""


@dataclass(frozen=True)
class DebianMysql:
    """Debian's server, client and source of one version, unpacked into `root/`; `version` names it."""

    name: str = "mysql-debian"
    needs: Sequence[Recipe] = field(default=())

    def inputs(self) -> bytes:
        """Which packages of which release; not the archive's state of the day: prune to have a newer one."""
        return f"{versions.MYSQL_RELEASE} {DEBIAN_PACKAGES}".encode()

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        """Unpack them with all that they depend on, without configuring anything."""
        root = into / "root"
        bootstrap(root, DEBIAN_PACKAGES, variant="extract", release=versions.MYSQL_RELEASE)
        merge_usr(root)
        keep_licences(root, into / "licences")
        # Nothing was configured, so dpkg there knows no package; its changelog knows its version.
        with gzip.open(root / f"usr/share/doc/{DEBIAN_PACKAGES[0]}/changelog.Debian.gz", "rt") as changelog:
            (into / "version").write_text(latest(changelog.readline()))


def latest(line: str) -> str:
    """The version in the first line of a Debian changelog (deb-changelog(5)); raises BuildError. Pure."""
    match = re.match(r"\S+ \(([^)\s]+)\)", line)
    if not match:
        raise BuildError(f"the changelog of {DEBIAN_PACKAGES[0]} begins with {line!r}; expected NAME (VERSION) …")
    return match[1]


@dataclass(frozen=True)
class ClusterPrograms:
    """The cluster's programs compiled from the source, in `bin/`."""

    name: str = "ndb"
    needs: Sequence[Recipe] = (DebianMysql(),)

    def inputs(self) -> bytes:
        """The programs and the options."""
        return repr((CLUSTER_PROGRAMS, CMAKE_OPTIONS)).encode()

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        """Configure, compile each program, and strip it."""
        archive, source, work = "usr/src/mysql/mysql-source.tar.gz", into / "source", into / "work"
        source.mkdir()
        run(["tar", "-xzf", made["mysql-debian"] / "root" / archive, "--strip-components=1", "-C", source])
        options = [f"-D{name}={value}" for name, value in CMAKE_OPTIONS.items()]
        run(["cmake", "-G", "Ninja", "-S", source, "-B", work, *options])
        progress("configured MySQL NDB Cluster")
        (into / "bin").mkdir()
        for program in CLUSTER_PROGRAMS:
            run(["ninja", "-C", work, program], timeout_s=NINJA_TIMEOUT_S)
            built = work / "runtime_output_directory" / program
            run(["strip", "-o", into / "bin" / program, built])
            progress(f"compiled {program}")
        (into / "licences/mysql").mkdir(parents=True)
        shutil.copyfile(source / "LICENSE", into / "licences/mysql/LICENSE")
        shutil.rmtree(source)
        shutil.rmtree(work)


@dataclass(frozen=True)
class SqlPrograms:
    """Debian's server and clients in `bin/`, made to load the libraries in `libraries/`; `plugins/` and `share/`."""

    name: str = "mysql"
    needs: Sequence[Recipe] = (DebianMysql(),)

    def inputs(self) -> bytes:
        """The programs, and where their libraries will lie."""
        return repr((CLIENT_PROGRAMS, LIBRARIES)).encode()

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        """Copy the programs with every library that the loader finds for them, and tie them to these."""
        root = made["mysql-debian"] / "root"
        programs = ["usr/sbin/mysqld", *(f"usr/bin/{program}" for program in CLIENT_PROGRAMS)]
        libraries = into / "libraries"
        libraries.mkdir()
        (into / "bin").mkdir()
        shutil.copyfile(root / "usr/lib64" / LOADER, libraries / LOADER)
        (libraries / LOADER).chmod(0o755)
        for program in programs:
            for path in linked(run(["chroot", root, f"/usr/lib64/{LOADER}", "--list", f"/{program}"])):
                shutil.copyfile(inside(root, path), libraries / os.path.basename(path))
            target = into / "bin" / os.path.basename(program)
            shutil.copy(root / program, target)
            # By RPATH, not RUNPATH: the libraries' own libraries and the plugins are looked for there as well.
            tied = ["--set-interpreter", f"{LIBRARIES}/{LOADER}", "--force-rpath", "--set-rpath", LIBRARIES]
            run(["patchelf", *tied, target])
        shutil.copytree(root / "usr/lib/mysql/plugin", into / "plugins")
        shutil.copytree(root / "usr/share/mysql", into / "share")


def linked(listing: str) -> list[str]:
    """The libraries' paths in what the loader lists; raises BuildError for one that is not found. Pure."""
    if missing := re.findall(r"^\s*(\S+) => not found", listing, re.MULTILINE):
        raise BuildError(f"Debian's MySQL lacks its libraries {', '.join(missing)}")
    return re.findall(r"^\s*\S+ => (/\S+) \(0x", listing, re.MULTILINE)


def inside(root: Path, path: str) -> Path:
    """The file that `path` is in the Debian root, whose links lead astray outside of it."""
    found = root / path.lstrip("/")
    return inside(root, os.path.join(os.path.dirname(path), os.readlink(found))) if found.is_symlink() else found


def _package(
    name: str, summary: str, depends: Sequence[str] = (), **contents: Mapping[str, tuple[str, str]]
) -> Package:
    return Package(
        name=f"mysql-cluster-community-{name}",
        version="",
        versioned_by="mysql-debian",
        summary=summary,
        depends=tuple(depends),
        postinst=POSTINST,
        programs=contents.get("programs", {}),
        trees=contents.get("trees", {}),
    )


COMMON = "mysql-cluster-community-common"
CLUSTER_LIBRARIES = ("libc6", "libgcc-s1", "libssl3", "libstdc++6", "libtinfo6", "zlib1g")
PACKAGES = (
    _package("common", "libraries of MySQL's programs", trees={LIBRARIES.lstrip("/"): ("mysql", "libraries")}),
    _package(
        "management-server",
        "management server of MySQL NDB Cluster",
        CLUSTER_LIBRARIES,
        programs={"usr/sbin/ndb_mgmd": ("ndb", "ndb_mgmd")},
    ),
    _package(
        "data-node",
        "data node of MySQL NDB Cluster",
        CLUSTER_LIBRARIES,
        programs={"usr/sbin/ndbmtd": ("ndb", "ndbmtd")},
    ),
    _package(
        "client",
        "command line clients of MySQL and of its NDB Cluster",
        (COMMON, *CLUSTER_LIBRARIES),
        programs={
            **{f"usr/bin/{name}": ("mysql", name) for name in CLIENT_PROGRAMS},
            **{f"usr/bin/{name}": ("ndb", name) for name in CLUSTER_PROGRAMS if name not in ("ndb_mgmd", "ndbmtd")},
        },
    ),
    _package(
        "server",
        "MySQL server with the NDB engine",
        (COMMON, "mysql-cluster-community-client"),
        programs={"usr/sbin/mysqld": ("mysql", "mysqld")},
        trees={"usr/lib/mysql/plugin": ("mysql", "plugins"), "usr/share/mysql": ("mysql", "share")},
    ),
)
MYSQL = Repository(
    "mysql/deb", PACKAGES, "mysql-packages", (ClusterPrograms(), SqlPrograms(), DebianMysql(), SigningKey())
)
