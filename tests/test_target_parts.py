"""Pure parts of the database, the files, the site and the public side: what is decided, without a target."""

import json
import re
import zlib
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.client import V1Deployment, V1DeploymentCondition, V1DeploymentStatus, V1ObjectMeta

from environments.load import find, load
from environments.model import AddressRange, Environment
from lab.nfs.rpc import read_record, results
from lab.nfs.xdr import Reader, Writer
from provisioning.access import leads_to_login
from provisioning.database import Database, pattern, quoted
from provisioning.ndb import MemberState, Ndb, parse_show, taking_part
from provisioning.preparation import armored, described, ndb_members
from provisioning.public import Answer
from provisioning.site import crowded, documents, extra_configuration, secret, unready_replicas
from provisioning.ssh import Shell
from provisioning.state import State
from provisioning.tunnel import content
from provisioning.wordpress import png
from steps.backup import fingerprints
from steps.database import not_replicated
from steps.edge import inner_addresses, is_sites_login, spellings, told_addresses

SHOWN = """\
Connected to management server at localhost port 1186 (using cleartext)
[ndbd(NDB)]     3 node(s)
id=2    @10.20.20.211  (mysql-9.7.4 ndb-9.7.4, Nodegroup: 0, *)
id=3    @10.20.20.212  (mysql-9.7.4 ndb-9.7.4, starting, Nodegroup: 0)
id=7    @10.20.20.213  (mysql-9.7.4 ndb-9.7.4, no nodegroup)

[mysqld(API)]   2 node(s)
id=4    @10.20.20.220  (mysql-9.7.4 ndb-9.7.4)
id=5 (not connected, accepting connect from any host)
"""


@pytest.fixture
def environment() -> Environment:
    return load(find("lab"))


# -- the database


def test_what_the_management_server_shows() -> None:
    states = parse_show(SHOWN)
    assert states == {
        2: MemberState("10.20.20.211", starting=False, group=0, program="ndbd", host="10.20.20.211"),
        3: MemberState("10.20.20.212", starting=True, group=0, program="ndbd", host="10.20.20.212"),
        7: MemberState("10.20.20.213", starting=True, group=None, program="ndbd", host="10.20.20.213"),
        4: MemberState("10.20.20.220", starting=False, group=None, program="mysqld", host="10.20.20.220"),
        5: MemberState(None, starting=False, group=None, program="mysqld", host="any host"),
    }
    assert [taking_part(states, number) for number in (2, 3, 4, 5, 7, 99)] == [True, False, True, False, False, False]


# As somebody else may have numbered them; a program for tools is connected from a data node's machine.
NUMBERED_OTHERWISE = """\
[ndbd(NDB)]     2 node(s)
id=12 (not connected, accepting connect from srvdbm01)
id=11   @10.20.20.212  (mysql-8.0.36 ndb-8.0.36, Nodegroup: 0)

[ndb_mgmd(MGM)] 1 node(s)
id=49   @10.20.20.210  (mysql-8.0.36 ndb-8.0.36)

[mysqld(API)]   3 node(s)
id=3    @10.20.20.211  (mysql-8.0.36 ndb-8.0.36)
id=51 (not connected, accepting connect from any host)
id=52   @172.31.0.120  (mysql-8.0.36 ndb-8.0.36)
"""


def test_a_members_number_is_the_one_that_the_management_server_tells(environment: Environment) -> None:
    shell = mock.Mock()
    shell.check.return_value = NUMBERED_OTHERWISE
    ndb = Ndb(environment, shell)
    assert [ndb.node_id(machine) for machine in ndb.members] == [49, 12, 11, 52]
    assert shell.check.call_count == 1
    assert [taking_part(ndb.show(), ndb.node_id(machine)) for machine in ndb.data] == [False, True]


def test_a_member_that_the_management_server_does_not_know_has_our_number(environment: Environment) -> None:
    ndb = Ndb(environment, mock.Mock())
    assert [ndb.node_id(machine, {}) for machine in ndb.members] == [1, 2, 3, 4]


def test_members_are_numbered_in_the_order_that_they_start_in(environment: Environment) -> None:
    management, data, sql = ndb_members(environment)
    assert [member.node_id for member in (*management, *data, *sql)] == [1, 2, 3, 4]
    assert [member.address for member in sql] == ["10.20.20.220"], "data nodes reach it in their own network"


def test_names_are_reached_in_a_network_of_both(environment: Environment) -> None:
    sql = environment.machine("srvdbm-sql01")
    seen = described(environment, sql).hosts
    assert (seen["srvdbm01"], seen["srvk8s-worker01"]) == ("10.20.20.211", "172.31.0.21")
    assert described(environment, environment.machine("srvk8s-worker01")).hosts["srvdbm-sql01"] == "172.31.0.120"


@given(st.text())
def test_a_literal_ends_where_its_text_ends(text: str) -> None:
    literal = quoted(text)
    assert re.fullmatch(r"'(?:[^'\\]|\\.)*'", literal, re.DOTALL)
    assert re.sub(r"\\(.)", r"\1", literal[1:-1], flags=re.DOTALL) == text


def test_a_grant_is_for_one_schema_whatever_its_name() -> None:
    assert pattern("word_press") == r"`word\_press`"
    assert pattern("a%`b") == r"`a\%``b`"


def test_the_grants_are_those_of_the_document(
    environment: Environment, tmp_path_factory: pytest.TempPathFactory
) -> None:
    database = Database(environment, Shell(environment, State(tmp_path_factory.mktemp("state"))))
    assert database.account == "'wordpress'@'172.31.0.%'"
    assert database.grants[1] == "GRANT ALL PRIVILEGES ON wordpress.* TO wordpress@172.31.0.%"
    assert str(database.address) == "172.31.0.120"


def test_a_table_of_another_engine_is_named() -> None:
    assert not_replicated({"wp_posts": "ndbcluster", "wp_plugin": "InnoDB"})["wp_plugin"]
    assert not not_replicated({"wp_posts": "ndbcluster"})["wp_posts"]


def test_a_changed_row_changes_the_fingerprint() -> None:
    counts: list[tuple[str, ...]] = [("wp_posts", "2")]
    assert fingerprints([("wp_posts", "123")], counts) != fingerprints([("wp_posts", "124")], counts)
    assert fingerprints([("wp_posts", "123")], counts) == fingerprints([("wp_posts", "123")], counts)


# -- the files


@given(st.lists(st.binary(max_size=40)), st.integers(0, 2**64 - 1))
def test_what_xdr_writes_it_reads(parts: list[bytes], number: int) -> None:
    writer = Writer().uint(len(parts)).hyper(number)
    for part in parts:
        writer.opaque(part)
    data = writer.bytes()
    assert len(data) % 4 == 0
    reader = Reader(data)
    assert (reader.uint(), reader.hyper()) == (len(parts), number)
    assert [reader.opaque() for _ in parts] == parts
    with pytest.raises(ValueError, match="too early"):
        reader.uint()


def test_a_record_of_many_fragments_is_one() -> None:
    """RFC 5531, section 11: a fragment's length, its highest bit set in the last one."""
    sent = bytearray(b"\0\0\0\4abcd" + b"\x80\0\0\2ef")

    def read(size: int) -> bytes:
        taken = bytes(sent[:size])
        del sent[:size]
        return taken

    assert read_record(read) == b"abcdef"


@given(st.binary(max_size=64))
def test_a_reply_that_is_none_is_an_error_and_no_crash(data: bytes) -> None:
    try:
        results(data)
    except (OSError, ValueError):
        return


# -- the site


def test_no_manifest_holds_the_password(environment: Environment) -> None:
    told = json.dumps(documents(environment, "172.31.0.120", "1"))
    assert '"secretKeyRef"' in told
    assert "lab-password" not in told
    assert "data" not in {key for document in documents(environment, "x", "1") for key in document}
    held = environment.wordpress.model_copy(update={"database_password": type("Told", (), {"reveal": lambda _: "p"})()})
    assert secret(environment.model_copy(update={"wordpress": held}))["data"] == {"password": "cA=="}


def test_the_documents_objects_have_its_names_and_numbers(environment: Environment) -> None:
    service, volume, claim, deployment = documents(environment, "172.31.0.120", "1")
    assert service["spec"]["loadBalancerIP"] == "172.31.0.100"
    assert volume["metadata"]["name"] == "wp-pv"
    assert volume["spec"]["nfs"] == {"server": "172.31.0.240", "path": "/mnt/shared/wordpress"}
    assert claim["metadata"]["name"] == "wp-pvc"
    assert deployment["spec"]["replicas"] == 3
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "wordpress:latest"
    assert {"name": "WORDPRESS_DB_HOST", "value": "172.31.0.120:3306"} in container["env"]


def test_each_visitor_is_led_on_under_the_name_that_was_asked_for(environment: Environment) -> None:
    php = extra_configuration(environment)
    assert "https://www.example.org" in php
    assert "http://172.31.0.100" in php


@given(st.binary(min_size=3, max_size=3))
def test_an_image_is_a_png_of_its_colour(colour: bytes) -> None:
    image = png(colour)
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    start = image.index(b"IDAT") + 4
    length = int.from_bytes(image[start - 8 : start - 4], "big")
    assert zlib.decompress(image[start : start + length]) == b"\0" + colour


# -- the public side


@pytest.mark.parametrize(
    ("status", "location", "leads"),
    [
        (302, "https://team.cloudflareaccess.com/cdn-cgi/access/login/www.example.org?kid=1", True),
        (200, "https://team.cloudflareaccess.com/cdn-cgi/access/login/www.example.org?kid=1", False),
        (302, "http://team.cloudflareaccess.com/cdn-cgi/access/login/www.example.org", False),
        (302, "https://team.cloudflareaccess.com.example.net/cdn-cgi/access/login/www.example.org", False),
        (302, "https://team.cloudflareaccess.com/cdn-cgi/access/login/other.example.org", False),
        (302, "https://www.example.org/wp-login.php?redirect_to=%2Fcdn-cgi%2Faccess%2Flogin%2F", False),
        (302, "", False),
    ],
)
def test_what_leads_to_the_login_of_access(status: int, location: str, leads: bool) -> None:
    assert leads_to_login(status, location, "www.example.org") is leads


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("see http://172.31.0.100/x", "the virtual address"),
        ('"172.31.0.21"', "srvk8s-worker01"),
        ("10.244.3.17:80", "a Pod's address"),
        ("10.20.20.220", "srvdbm-sql01"),
    ],
)
def test_an_address_is_found_wherever_it_is_told(environment: Environment, text: str, what: str) -> None:
    patterns = inner_addresses(environment)
    for answer in (Answer(200, {}, text.encode()), Answer(302, {"location": (text,)}, b"")):
        (line,) = told_addresses(answer, patterns)
        assert what in line


@pytest.mark.parametrize("text", ["172.31.0.1001", "1172.31.0.100", "version 10.244", "172.31.0.10", ""])
def test_a_number_like_an_address_is_none(environment: Environment, text: str) -> None:
    assert not told_addresses(Answer(200, {"x": (text,)}, text.encode()), inner_addresses(environment))


def test_every_guarded_path_is_tried_in_every_spelling() -> None:
    tried = spellings()
    assert len(tried) == len(set(tried)) == 30
    assert {"/wp-admin", "//wp-admin", "/WP-ADMIN", "/%77p-login.php", "/x/%2e%2e/wp-login.php"} <= set(tried)


def test_the_sites_own_login_is_told_from_other_pages() -> None:
    assert is_sites_login(Answer(200, {}, b'<form name="loginform" id="loginform">'))
    assert not is_sites_login(Answer(302, {}, b'id="loginform"'))
    assert not is_sites_login(Answer(200, {}, b"welcome"))


def test_a_key_is_armored_once() -> None:
    text = armored(bytes(range(200)))
    assert armored(text.encode()) == text
    begin, empty, *lines = text.splitlines()
    assert (begin, empty) == ("-----BEGIN PGP PUBLIC KEY BLOCK-----", "")
    assert all(len(line) <= 64 for line in lines[:-1])


def test_the_connectors_file_is_one_line_that_systemd_reads() -> None:
    assert content("abc=") == "TUNNEL_TOKEN=abc=\n"


def test_a_range_knows_its_ends() -> None:
    assert str(AddressRange.model_validate({"first": "172.31.0.100", "last": "172.31.0.110"})) == (
        "172.31.0.100-172.31.0.110"
    )


@pytest.mark.parametrize(
    ("nodes", "moved"),
    [
        ({"a": "w1", "b": "w2", "c": "w3"}, {}),
        ({"a": "w1", "b": "w1", "c": "w2"}, {"b": "w1"}),
        ({"a": "w1", "b": "w1", "c": "w1"}, {"b": "w1", "c": "w1"}),
        ({"a": "w1", "b": "w2", "c": "w3", "d": "w3"}, {}),
        ({"a": "w1", "b": None, "c": "m1"}, {}),
    ],
)
def test_replicas_that_share_a_worker_while_another_has_none_are_moved(
    nodes: dict[str, str | None], moved: dict[str, str]
) -> None:
    assert crowded(nodes, {"w1", "w2", "w3"}) == moved


def test_a_replica_that_may_not_be_made_is_told_with_the_reason() -> None:
    told = V1DeploymentCondition(type="ReplicaFailure", status="True", reason="FailedCreate", message="exceeded quota")
    over = V1DeploymentCondition(type="ReplicaFailure", status="False", reason="FailedCreate", message="long ago")
    counts = {"observed_generation": 1, "ready_replicas": 2, "updated_replicas": 2, "replicas": 2}
    cluster = mock.Mock()
    cluster.apps.read_namespaced_deployment.return_value = V1Deployment(
        metadata=V1ObjectMeta(generation=1),
        spec=mock.Mock(replicas=3),
        status=V1DeploymentStatus(conditions=[over, told], **counts),
    )
    cluster.core.list_namespaced_event.return_value.items = []
    assert unready_replicas(cluster) == ["2 of 3 replicas are Ready", "FailedCreate: exceeded quota"]
