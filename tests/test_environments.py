"""An environment file is read whole, or every fault of it is told at once."""

import tomllib
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_ssh_private_key,
)
from hypothesis import given
from hypothesis import strategies as st

from environments.faults import admits
from environments.load import EnvironmentInvalid, find, load, require_files
from environments.model import Environment, Role
from environments.secret import SecretRef
from lab import certificates, credentials
from lab.supervisor import ensure_ssh_key

SECRET = "s3cr3t-that-must-not-show"
# Where lab.toml may differ from seed.toml: where things come from, and whether breaking is allowed.
SOURCES = {
    "name",
    "hypervisor.provider",
    "hypervisor.provider_options.source",
    "hypervisor.api_url",
    "hypervisor.ca",
    "hypervisor.token_id",
    "hypervisor.token",
    "hypervisor.template.image_url",
    "hypervisor.template.image_checksum",
    "ssh.private_key",
    "kubernetes.packages.url",
    "kubernetes.packages.key_url",
    "kubernetes.registry_mirror",
    "kubernetes.ignored_preflight_checks",
    "kubernetes.cni.manifest.url",
    "metallb.manifest.url",
    "ndb.packages.url",
    "ndb.packages.key_url",
    "ndb.packages.suite",
    "ndb.packages.components",
    "wordpress.database_password",
    "wordpress.admin_password",
    "helm.packages.url",
    "helm.packages.key_url",
    "helm.packages.suite",
    "helm.packages.components",
    "helm.repositories.bitnami",
    "edge.api_token",
    "edge.api_url",
    "edge.ca",
    "edge.resolve",
    "edge.proxy",
    "edge.mailbox",
    "edge.mailbox.url",
    "edge.mailbox.token",
    "edge.mailbox.ages",
    "edge.packages.url",
    "edge.packages.key_url",
    "edge.packages.suite",
    "edge.packages.components",
    "chaos.allowed",
}


@pytest.fixture
def text() -> str:
    return find("lab").read_text()


def broken(tmp_path: Path, text: str, *changes: tuple[str, str]) -> EnvironmentInvalid:
    """What `load` says of `text` after `changes`, each of which must find its place."""
    for old, new in changes:
        assert old in text, f"the test expected {old!r} in lab.toml"
        text = text.replace(old, new, 1)
    path = tmp_path / "broken.toml"
    path.write_text(text)
    with pytest.raises(EnvironmentInvalid) as raised:
        load(path)
    return raised.value


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Leaves of nested tables by dotted key."""
    if isinstance(value, dict):
        return {k: v for name, inner in value.items() for k, v in flat(inner, f"{key}.{name}".lstrip(".")).items()}
    return {key: value}


def test_the_lab_is_the_documents_target() -> None:
    environment = load(find("lab"))
    assert [m.name for m in environment.with_role(Role.CONTROL_PLANE)] == ["srvk8s-master01", "srvk8s-master02"]
    assert [m.name for m in environment.with_role(Role.WORKER)] == [f"srvk8s-worker0{n}" for n in (1, 2, 3)]
    assert str(environment.metallb.range) == "172.31.0.100-172.31.0.110"
    assert len(environment.metallb.range) == 11
    assert [str(i) for i in environment.interfaces(environment.machine("srvdbm-sql01"))] == [
        "10.20.20.220/24",
        "172.31.0.120/24",
    ]


def test_lab_and_seed_differ_only_in_where_things_come_from() -> None:
    seed, lab = (flat(tomllib.loads(find(name).read_text())) for name in ("seed", "lab"))
    differing = {key for key in seed.keys() | lab.keys() if seed.get(key) != lab.get(key)}
    assert differing <= SOURCES, f"lab.toml has another shape in {sorted(differing - SOURCES)}"


@pytest.mark.parametrize(
    ("old", "new", "key", "expected"),
    [
        ("[ndb]", "[ndb]\nreplica = 3", "ndb.replica", "unknown key"),
        (
            'cores = 4\nmemory_mib = 4096\naddresses = { cluster = "172.31.0.11" }',
            "",
            "machines[0].addresses",
            "required",
        ),
        (
            'cluster = "172.31.0.12"',
            'cluster = "172.31.0.11"',
            "machines[1].addresses.cluster",
            "taken by srvk8s-master01",
        ),
        (
            'cluster = "172.31.0.12"',
            'cluster = "172.31.9.12"',
            "machines[1].addresses.cluster",
            "outside 172.31.0.0/24",
        ),
        (
            'cluster = "172.31.0.12"',
            'cluster = "172.31.0.1"',
            "machines[1].addresses.cluster",
            "the gateway of cluster",
        ),
        (
            'cluster = "172.31.0.12"',
            'clusters = "172.31.0.12"',
            "machines[1].addresses.clusters",
            "one of the networks",
        ),
        ("172.31.0.100-172.31.0.110", "172.31.0.100-172.31.0.120", "metallb.range", "collides with 172.31.0.120"),
        ("172.31.0.100-172.31.0.110", "172.31.0.110-172.31.0.100", "metallb.range", "FIRST not above LAST"),
        ("172.31.0.100-172.31.0.110", "192.0.2.1-192.0.2.9", "metallb.range", "lies in no network"),
        ('"10.20.20.0/24"', '"172.31.0.0/16"', "networks.database.cidr", "overlaps 172.31.0.0/24"),
        ("vmid = 112", "vmid = 111", "machines[1].vmid", "is also srvk8s-master01"),
        ("vmid = 112", "vmid = 9000", "machines[1].vmid", "is also the template"),
        ('name = "srvk8s-master02"', 'name = "srvk8s-master01"', "machines[1].name", "is also machines[0]"),
        (
            'control_plane_endpoint = "srvk8s-master01"',
            'control_plane_endpoint = "x"',
            "kubernetes.control_plane_endpoint",
            "no control plane",
        ),
        ('vip = "172.31.0.100"', 'vip = "172.31.0.99"', "wordpress.vip", "outside the pool"),
        (
            'vip = "172.31.0.100"',
            'vip = "172.31.0.100"\nvip_clients = ["172.31.0.0/25"]',
            "wordpress.vip_clients",
            "srv-tunnel01",
        ),
        ('"file:/var/lib/haproof-lab/id_ed25519"', '"env:KEY"', "ssh.private_key", "file:PATH"),
        ("replicas = 2", "replicas = 3", "ndb.replicas", "does not divide the 2 machines"),
        ('clients = "172.31.0.0/24"', 'clients = "172.31.0.20/31"', "nfs.clients", "leaves out srvk8s-worker02"),
        ('"172.31.0.%"', '"10.%"', "wordpress.database_clients", "leaves out srvk8s-worker01"),
        ('"172.31.0.%"', '"172.31.0._1"', "wordpress.database_clients", "leaves out srvdbm-sql01"),
        ('"172.31.0.%"', '"172.31.0.0/25.5.5"', "wordpress.database_clients", "netmask"),
        ('admin_emails = ["editor@example.org"]', "", "edge.admin_emails", "names nobody"),
        (
            "{ read = 80, search = 10, comment = 2, edit = 3, publish = 3, upload = 2 }",
            "{ read = 0 }",
            "load.weights",
            "one weight above 0",
        ),
    ],
)
def test_a_fault_names_file_key_and_what_was_expected(
    tmp_path: Path, text: str, old: str, new: str, key: str, expected: str
) -> None:
    message = str(broken(tmp_path, text, (old, new)))
    told = [line for line in message.splitlines() if f"broken.toml: {key}: " in line]
    assert any(expected in line for line in told), message


@pytest.mark.parametrize("role", Role)
def test_a_part_that_no_machine_has_is_a_fault(tmp_path: Path, text: str, role: Role) -> None:
    other = Role.NFS if role is not Role.NFS else Role.TUNNEL
    named = f'role = "{role}"'
    error = broken(tmp_path, text, *[(named, f'role = "{other}"')] * text.count(named))
    told = [fault.expected for fault in error.faults if fault.key == "machines"]
    assert told == [f"none has the role {role}; expected at least one"]


def test_a_role_that_is_only_misspelled_is_not_told_as_missing(tmp_path: Path, text: str) -> None:
    error = broken(tmp_path, text, ('role = "nfs"', 'role = "nsf"'))
    assert [fault.key for fault in error.faults] == ["machines[9].role"]


def test_as_many_data_nodes_as_make_whole_groups_are_no_fault(tmp_path: Path, text: str) -> None:
    path = tmp_path / "single.toml"
    path.write_text(text.replace("replicas = 2", "replicas = 1"))
    assert load(path).ndb.replicas == 1


def test_domains_may_administer_without_addresses(tmp_path: Path, text: str) -> None:
    path = tmp_path / "domains.toml"
    path.write_text(text.replace('admin_emails = ["editor@example.org"]', 'admin_domains = ["example.org"]'))
    assert load(path).edge.admin_domains == ("example.org",)


@pytest.mark.parametrize(
    ("clients", "admitted"),
    [
        ("172.31.0.%", True),
        ("%", True),
        ("172.31.0.2_", True),
        ("172.31.0.0/255.255.255.0", True),
        ("172.31.0.0/24", True),
        ("172.31.0.21", True),
        ("172.31.0.2", False),
        ("172.31.0._", False),
        ("172.31.1.%", False),
        ("172x31.0.%", False),
        ("10.20.20.0/24", False),
    ],
)
def test_whom_the_database_lets_in(clients: str, admitted: bool) -> None:
    assert admits(clients, IPv4Address("172.31.0.21")) is admitted


def test_all_faults_are_told_at_once(tmp_path: Path, text: str) -> None:
    error = broken(
        tmp_path, text, ("[ndb]", "[ndb]\nreplica = 3"), ("vmid = 112", "vmid = 111"), ("replicas = 3", "replicas = 0")
    )
    assert {fault.key for fault in error.faults} == {"ndb.replica", "machines[1].vmid", "wordpress.replicas"}


@pytest.mark.parametrize(
    ("written", "secret"),
    [
        (f'"{SECRET}"', SECRET),
        ("12345678", "12345678"),
        ("-1234.5678", "1234.5678"),
        ("0xDEADBEEF", "3735928559"),
        ("true", "true"),
        ("1979-05-27", "1979"),
        ("1979-05-27T07:32:00Z", "1979"),
        ("07:32:00", "32"),
        (f'["{SECRET}", 12345678]', SECRET),
        (f'{{ value = "{SECRET}" }}', SECRET),
        (f"{{ {SECRET} = 12345678 }}", SECRET),
        ("{ reference = 12345678 }", "12345678"),
        (f'{{ reference = "env:HOME", value = "{SECRET}" }}', SECRET),
        ("{}", "{}"),
    ],
)
@pytest.mark.parametrize(
    ("name", "key"),
    [("api-token", "hypervisor.token"), ("wordpress-admin-password", "wordpress.admin_password")],
)
def test_a_secret_in_the_file_is_refused_without_being_repeated(
    tmp_path: Path, text: str, name: str, key: str, written: str, secret: str
) -> None:
    error = broken(tmp_path, text, (f'"file:/var/lib/haproof-lab/{name}"', written))
    assert [(fault.key, fault.expected) for fault in error.faults] == [
        (key, "expected a reference to a secret, env:NAME or file:PATH, never the secret itself")
    ]
    assert secret.lower() not in str(error).lower().replace(str(tmp_path), "")


def test_missing_secrets_are_faults_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HAPROOF_PVE_TOKEN", "HAPROOF_WORDPRESS_DB_PASSWORD", "HAPROOF_CLOUDFLARE_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EnvironmentInvalid) as raised:
        load(find("seed"))
    keys = {fault.key for fault in raised.value.faults}
    assert {"hypervisor.token", "wordpress.database_password", "edge.api_token"} <= keys
    assert "HAPROOF_PVE_TOKEN is not set" in str(raised.value)


def test_a_provided_hypervisors_secrets_are_looked_for_when_it_is_up(tmp_path: Path, text: str) -> None:
    path = tmp_path / "provided.toml"
    path.write_text(text.replace("/var/lib/haproof-lab/", f"{tmp_path}/"))
    environment = load(path)
    with pytest.raises(EnvironmentInvalid, match="api-token cannot be read"):
        require_files(environment, path)


@pytest.fixture
def outside(tmp_path: Path, text: str) -> Path:
    """The lab's environment whose secrets, key and certificates are files that can be used, in a folder of the test."""
    credentials.ensure(tmp_path)
    certificates.ensure_token(tmp_path)
    ensure_ssh_key(tmp_path / "id_ed25519")
    for folder in (tmp_path, tmp_path / "edge"):
        certificates.ensure(folder, ["127.0.0.1"])
    path = tmp_path / "outside.toml"
    path.write_text(text.replace("/var/lib/haproof-lab/", f"{tmp_path}/"))
    return path


def test_files_that_can_be_used_are_no_fault(outside: Path) -> None:
    require_files(load(outside), outside)


def with_a_passphrase(key: Path) -> None:
    """The key as its owner may have it."""
    held = load_ssh_private_key(key.read_bytes(), None)
    assert isinstance(held, Ed25519PrivateKey)
    key.write_bytes(held.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, BestAvailableEncryption(SECRET.encode())))


@pytest.mark.parametrize(
    ("file", "spoil", "key", "expected"),
    [
        ("pve-root-ca.pem", Path.unlink, "hypervisor.ca", "No such file"),
        ("edge/pve-root-ca.pem", Path.unlink, "edge.ca", "No such file"),
        ("edge/pve-root-ca.pem", lambda path: path.write_text("no certificate"), "edge.ca", "certificates in PEM"),
        ("id_ed25519", Path.unlink, "ssh.private_key", "cannot be read"),
        ("id_ed25519", with_a_passphrase, "ssh.private_key", "without a passphrase"),
        ("id_ed25519", lambda path: path.write_text("no key"), "ssh.private_key", "OpenSSH's form"),
        ("api-token", lambda path: path.write_bytes(b"\xff\xfe"), "hypervisor.token", "is no text"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_fault_of_its_key(
    outside: Path, file: str, spoil: Callable[[Path], object], key: str, expected: str
) -> None:
    path = outside.parent / file
    spoil(path)
    with pytest.raises(EnvironmentInvalid) as raised:
        require_files(load(outside), outside)
    (fault,) = raised.value.faults
    assert (fault.key, str(path) in fault.expected, expected in fault.expected) == (key, True, True), fault


def test_a_secrets_value_shows_nowhere(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(SECRET + "\n")
    secret = SecretRef(reference=f"file:{tmp_path}/token")
    assert secret.reveal() == SECRET
    assert SECRET not in f"{secret} {secret!r} {secret.model_dump_json()}"


def test_an_environment_cannot_be_changed() -> None:
    environment = load(find("lab"))
    with pytest.raises(ValueError, match="frozen"):
        environment.name = "other"


def test_an_unknown_name_offers_the_known_ones() -> None:
    with pytest.raises(EnvironmentInvalid, match="lab, seed"):
        find("labb")


@given(st.binary(max_size=200))
def test_any_bytes_are_one_clear_error_or_an_environment(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "any.toml"
    path.write_bytes(content)
    with pytest.raises(EnvironmentInvalid):
        load(path)


def test_models_know_no_unknown_keys() -> None:
    assert Environment.model_config["extra"] == "forbid"
