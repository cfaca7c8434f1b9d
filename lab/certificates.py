"""The lab's own certificate authority, its server's certificate, and the API token."""

import ipaddress
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lab.durable import write_bytes

CA_NAME = "pve-root-ca.pem"
TOKEN_NAME = "api-token"
CA_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=730)
RENEWED_BEFORE = timedelta(days=30)


def ensure(state: Path, addresses: Sequence[str]) -> tuple[Path, Path, Path]:
    """Have a certificate for `addresses` (IP addresses and host names); returns (certificate, key, CA) in PEM.

    The CA is made once; the certificate again when it runs out, another CA signed it or an address is missing.
    Raises ValueError when the CA's key is none that this made.
    """
    state.mkdir(parents=True, exist_ok=True)
    ca_path, ca_key_path = state / CA_NAME, state / "pve-root-ca.key"
    certificate_path, key_path = state / "pve-ssl.pem", state / "pve-ssl.key"
    if not (ca_path.exists() and ca_key_path.exists()):
        _make_ca(ca_path, ca_key_path)
    ca = x509.load_pem_x509_certificate(ca_path.read_bytes())
    names = _names(addresses)
    if not (certificate_path.exists() and key_path.exists() and _serves(certificate_path, key_path, ca, names)):
        ca_key = serialization.load_pem_private_key(ca_key_path.read_bytes(), None)
        if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{ca_key_path}: not the lab's own kind of key; remove it and {ca_path} to begin anew")
        _make_leaf(certificate_path, key_path, ca, ca_key, names)
    return certificate_path, key_path, ca_path


def ensure_token(state: Path) -> str:
    """Have the API token's secret in a file only root can read; returns the secret."""
    state.mkdir(parents=True, exist_ok=True)
    path = state / TOKEN_NAME
    if not path.exists():
        write_bytes(path, str(uuid.uuid4()).encode(), 0o600)
    return path.read_text().strip()


def fingerprint(certificate_path: Path) -> str:
    """The certificate's SHA-256 as PVE writes it: `AB:CD:…`."""
    certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def _names(addresses: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for address in addresses:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            names.append(x509.DNSName(address))
    return names


def _serves(path: Path, key_path: Path, ca: x509.Certificate, names: Sequence[x509.GeneralName]) -> bool:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    key = serialization.load_pem_private_key(key_path.read_bytes(), None)
    if key.public_key() != certificate.public_key():  # killed between writing one and the other
        return False
    have = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return set(names) <= set(have) and certificate.not_valid_after_utc - RENEWED_BEFORE > datetime.now(UTC)


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "haproof lab"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + life)
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    write_bytes(path, key.private_bytes(encoding, form, serialization.NoEncryption()), 0o600)


def _make_ca(path: Path, key_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    # The name is unique, so that a client which kept an older lab's CA fails with "unknown issuer".
    name = _name(f"haproof lab root CA {uuid.uuid4()}")
    public = key.public_key()
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    certificate = (
        _builder(name, name, public, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_key(key_path, key)
    write_bytes(path, certificate.public_bytes(serialization.Encoding.PEM))


def _make_leaf(
    path: Path,
    key_path: Path,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    names: Sequence[x509.GeneralName],
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(_name("pve"), ca.subject, key.public_key(), LEAF_LIFE)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    _write_key(key_path, key)
    write_bytes(path, certificate.public_bytes(serialization.Encoding.PEM))
