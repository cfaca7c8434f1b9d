"""Questions over HTTPS connections that are kept, against a server of this test's own."""

import http.server
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from chaos.probe import Call, PublicPage, ask_one
from tests.served import served

NAME = "www.example.org"


@dataclass
class Site:
    """What the server answers, and what it saw."""

    port: int = 0
    certificate: str = ""
    key: str = ""
    status: int = 200
    closing: bool = False
    says_so: bool = False
    connections: int = 0
    bodies: list[str] = field(default_factory=list)


def self_signed() -> tuple[str, str]:
    """A certificate for `NAME` and its key, as texts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME), x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return made.public_bytes(Encoding.PEM).decode(), text


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site()
    site.certificate, site.key = self_signed()
    pem = tmp_path / "both.pem"
    pem.write_text(site.certificate + site.key)

    class Answers(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            site.connections += 1
            super().setup()

        def do_GET(self) -> None:
            site.bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
            self.send_response(site.status)
            self.send_header("Content-Length", "0")
            if site.says_so:
                self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = site.closing

        do_PUT = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server = http.server.ThreadingHTTPServer(("localhost", 0), Answers)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    site.port = server.server_port
    with served(server):
        yield site


def page(site: Site, name: str = NAME) -> PublicPage:
    return PublicPage(layer="public", host="localhost", port=site.port, name=name, ca=site.certificate)


def test_one_connection_serves_many_questions(site: Site) -> None:
    question = page(site)
    assert [ask_one(question, 0.0).error for _ in range(5)] == [""] * 5
    assert site.connections == 1


def test_an_answer_that_is_an_error_is_told_and_costs_no_connection(site: Site) -> None:
    question, site.status = page(site), 530
    assert ask_one(question, 0.0).error == "OSError: HTTP 530"
    site.status = 200
    assert ask_one(question, 0.0).error == ""
    assert site.connections == 1


def test_a_connection_that_was_closed_is_one_failure_and_then_another_connection(site: Site) -> None:
    question = page(site)
    site.closing = True
    ask_one(question, 0.0)
    site.closing = False
    assert [ask_one(question, 0.0).error for _ in range(3)][1:] == ["", ""]


def test_after_a_connection_that_the_server_ended_as_it_said_comes_another_to_the_same_host(site: Site) -> None:
    question = page(site)
    site.closing = site.says_so = True
    assert [ask_one(question, 0.0).error for _ in range(3)] == [""] * 3
    assert site.connections == 3


def test_a_certificate_for_another_name_is_no_answer(site: Site) -> None:
    assert "CERTIFICATE_VERIFY_FAILED" in ask_one(page(site, "elsewhere.example.org"), 0.0).error


def test_what_is_written_to_the_api_changes_every_time(site: Site) -> None:
    body = '{"data": {"at": "@"}}'
    question = Call(
        layer="api/write",
        host="localhost",
        port=site.port,
        method="PUT",
        body=body,
        ca=site.certificate,
        certificate=site.certificate,
        key=site.key,
    )
    assert [ask_one(question, 0.0).error for _ in range(2)] == ["", ""]
    assert len(set(site.bodies)) == 2
    assert "@" not in "".join(site.bodies)
