"""The signature under a run: an in-toto statement in a DSSE envelope, and whether it still fits what lies beside it.

Format: in-toto attestation v1 with the test-result predicate v0.1; every file of the folder is one of its subjects.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from google.protobuf.json_format import MessageToDict, Parse, ParseError
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from certificate.record import Record
from certificate.verdict import Outcome, Verdict

FILE, PUBLIC_KEY = "attestation.json", "signer.pem"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
PREDICATE_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
RESULTS: Mapping[Outcome, str] = {
    Outcome.CERTIFIED: "PASSED",
    Outcome.LIMITED: "WARNED",
    Outcome.REFUSED: "FAILED",
    Outcome.NOT_JUDGED: "FAILED",
}
CHUNK = 1 << 20


class NotSigned(Exception):
    """There is no attestation, or none that can be read; the message says why."""


@dataclass(frozen=True)
class Verification:
    """What is wrong with a folder, a line each; by whom it is signed, and whether that key is one of ours."""

    complaints: tuple[str, ...]
    key_id: str
    known: bool
    outcome: str


def default_key() -> Path:
    """Where this user's own signing key lies (XDG data folder)."""
    base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "haproof" / "signing-key.pem"


def own_key() -> Path:
    """The user's own signing key, made when missing and readable by its owner only; raises NotSigned."""
    file = default_key()
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as made:
                made.write(new)
    except OSError as error:
        raise NotSigned(f"{file} cannot be made: {error}") from error
    return file


def signer_of(file: Path) -> CryptoSigner:
    """The signer whose private key `file` holds; raises NotSigned when it is missing or holds something else."""
    try:
        return CryptoSigner(load_pem_private_key(file.read_bytes(), None))
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise NotSigned(f"{file} is no private key without a passphrase, in PEM: {error}") from error


def public_key(file: Path) -> SSlibKey:
    """The public key in `file`, or the public half of the private one; raises NotSigned."""
    try:
        held = file.read_bytes()
        if b"PRIVATE KEY" in held:
            return signer_of(file).public_key
        return SSlibKey.from_crypto(load_pem_public_key(held))
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise NotSigned(f"{file} is no public key in PEM: {error}") from error


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by its path in there; the attestation cannot hold its own."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.is_symlink()]
    names = {file.relative_to(folder).as_posix(): file for file in files}
    return {name: digest(file) for name, file in names.items() if name != FILE}


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def statement(record: Record, found: Mapping[str, str]) -> Statement:
    """What is attested: the environment, the software, its components, and every file by its digest. Pure."""
    subjects = [
        ResourceDescriptor(name=f"environment/{record.environment}", digest={"sha256": record.sha256}).pb,
        *(ResourceDescriptor(name=name, digest={"sha256": digest}).pb for name, digest in found.items()),
    ]
    commit = {"gitCommit": record.software.commit} if record.software.commit else {}
    predicate = {
        "result": RESULTS[record.outcome],
        "configuration": [
            {"name": "haproof", "digest": commit, "annotations": {"changed": record.software.changed}},
            {"name": "components", "annotations": dict(record.versions)},
        ],
        "passedTests": _named(record, Verdict.PROVEN),
        "warnedTests": _named(record, Verdict.NOT_EXERCISED),
        "failedTests": _named(record, Verdict.REFUTED, Verdict.UNKNOWN),
        "outcome": str(record.outcome),
    }
    return Statement(subjects, PREDICATE_TYPE, predicate)


def _named(record: Record, *verdicts: Verdict) -> list[str]:
    return [one.name for one in record.scenarios if one.verdict in verdicts]


def sign(folder: Path, key: Path) -> None:
    """Write the attestation of what lies in `folder`, and the key to check it by; raises NotSigned and OSError."""
    signer = signer_of(key)
    private = load_pem_private_key(key.read_bytes(), None)
    (folder / PUBLIC_KEY).write_bytes(
        private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    made = statement(Record.read(folder), digests(folder))
    made.validate()
    payload = json.dumps(MessageToDict(made.pb), sort_keys=True).encode()
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    (folder / FILE).write_text(json.dumps(envelope.to_dict(), indent=2) + "\n")


def verify(folder: Path, trusted: Iterable[Path]) -> Verification:
    """Whether the signature holds, and each file is what was signed; needs no network. Raises NotSigned.

    Without a trusted key that fits, the key beside the attestation is taken: it shows that nothing changed since the
    signing, and not who signed.
    """
    envelope = _envelope(folder)
    keys = [public_key(file) for file in trusted]
    known = [key for key in keys if key.keyid in envelope.signatures]
    key = known[0] if known else public_key(folder / PUBLIC_KEY)
    try:
        envelope.verify([key], 1)
    except VerificationError:
        told = f"{FILE}: its signature is not that of {key.keyid[:16]}"
        return Verification((told,), key.keyid, bool(known), "")
    made = _statement(envelope)
    signed = {subject.name: dict(subject.digest).get("sha256", "") for subject in made.subject}
    outcome = str(MessageToDict(made.predicate).get("outcome", ""))
    return Verification(tuple(_differences(folder, signed)), key.keyid, bool(known), outcome)


def _envelope(folder: Path) -> Envelope:
    try:
        envelope = Envelope.from_dict(json.loads((folder / FILE).read_bytes()))
        envelope.pae()  # what is signed can be made of it
        return envelope
    except OSError as error:
        raise NotSigned(f"{folder} holds no attestation: {error.strerror or error}") from error
    except Exception as error:
        raise NotSigned(f"{folder / FILE} is no DSSE envelope: {type(error).__name__}: {error}") from error


def _statement(envelope: Envelope) -> StatementMessage:
    try:
        made = Parse(envelope.payload, StatementMessage())
    except (ParseError, UnicodeDecodeError) as error:
        raise NotSigned(f"what is signed is no in-toto statement: {error}") from error
    if envelope.payload_type != PAYLOAD_TYPE or made.predicate_type != PREDICATE_TYPE:
        raise NotSigned(f"what is signed is a {made.predicate_type or envelope.payload_type}, not a test result")
    return made


def _differences(folder: Path, signed: Mapping[str, str]) -> list[str]:
    """Each file that is not as it was signed, is missing, or was not signed; what is no file was never signed."""
    there = digests(folder)
    others = [each for each in sorted(folder.rglob("*")) if each.is_symlink() or not (each.is_file() or each.is_dir())]
    wanted = {name: digest for name, digest in signed.items() if not name.startswith("environment/")}
    told = [f"{name}: missing" for name in sorted(wanted.keys() - there.keys())]
    told += [f"{name}: not signed" for name in sorted(there.keys() - wanted.keys())]
    told += [f"{each.relative_to(folder).as_posix()}: no file, and not signed" for each in others]
    told += [f"{name}: changed" for name in sorted(wanted.keys() & there.keys()) if wanted[name] != there[name]]
    return told
