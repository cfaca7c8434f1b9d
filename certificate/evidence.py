"""The folder of a run: where drills and logs go while it runs, and what is written there when it ends."""

import html
import json
import os
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote, quote_plus

from pydantic import BaseModel

from certificate import junit, page
from certificate.record import FILE, Record
from environments.model import Environment
from environments.secret import SecretMissing, SecretRef

LATEST = "latest"
HIDDEN = "(hidden)"
SHORTEST_SECRET = 6  # a shorter one would blot out ordinary words


@dataclass(frozen=True)
class Evidence:
    """`out/ENVIRONMENT/TIME`, made when the first file is put there."""

    folder: Path

    @classmethod
    def of(cls, out: Path, environment: str, began: datetime) -> "Evidence":
        """The folder of the run that began at that time."""
        return cls(out / environment / began.strftime("%Y%m%dT%H%M%SZ"))

    def log(self, number: int, name: str, text: str) -> str:
        """Keep what a scenario said; returns the file's path in the folder."""
        where = Path("logs") / f"{number:03d}-{slug(name)}.txt"
        self._put(where, text)
        return where.as_posix()

    def within(self, folder: Path) -> list[str]:
        """Paths of the files in a folder of the run; a drill that could not begin has made none."""
        if not folder.is_dir():
            return []
        inside = folder.resolve().relative_to(self.folder.resolve())
        return [f"{inside.as_posix()}/{file.name}" for file in sorted(folder.iterdir()) if file.is_file()]

    def _put(self, where: Path, text: str) -> None:
        file = self.folder / where
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def blot(self, secrets: Iterable[str]) -> None:
        """Take every secret out of what is there already: drills write what machines and services told them."""
        coded = [secret.encode() for secret in secrets]
        for file in self.folder.rglob("*"):
            if file.is_file() and not file.is_symlink():
                held = told = file.read_bytes()
                for secret in coded:
                    told = told.replace(secret, HIDDEN.encode())
                if told != held:
                    file.write_bytes(told)

    def finish(self, record: Record, description: bytes) -> None:
        """Write the run for people and programs; the record last of all, so that a part is never taken for a whole."""
        (self.folder / "environment.toml").write_bytes(description)
        write(self.folder, record)

    def publish(self) -> None:
        """Let `latest` lead here."""
        link = self.folder.parent / LATEST
        temporary = link.with_name(f".{LATEST}.{os.getpid()}")
        with suppress(FileNotFoundError):
            temporary.unlink()
        temporary.symlink_to(self.folder.name)
        temporary.replace(link)


def write(folder: Path, record: Record) -> None:
    """The record as JUnit's XML, as a page and as itself, in a folder that holds its logs."""
    (folder / "junit.xml").write_bytes(junit.of(record))
    (folder / "certificate.html").write_text(page.of(record, folder), encoding="utf-8")
    (folder / FILE).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


def slug(name: str) -> str:
    """A name as part of a file's. Pure."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60]


def secrets_of(environment: Environment) -> tuple[str, ...]:
    """Every form of all secrets that the environment refers to and that can be read, longest first."""
    values = set()
    for reference in _references(environment):
        with suppress(SecretMissing):
            values.add(reference.reveal())
            values.update(reference.reveal().splitlines())  # a key in PEM is quoted line by line
    found = {form for value in values if len(value) >= SHORTEST_SECRET for form in forms_of(value)}
    return tuple(sorted(found, key=len, reverse=True))


def forms_of(secret: str) -> set[str]:
    """A secret as it stands in text, Python, JSON, HTML, addresses, and in base64 wherever it begins there. Pure."""
    found = {secret, repr(secret)[1:-1], html.escape(secret), quote(secret), quote(secret, safe=""), quote_plus(secret)}
    found |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    plain = secret.encode()
    for before in range(3):
        # Three bytes are four characters: what shares one with a neighbour differs by it, and is left out.
        first, last = -(-before * 8 // 6), (before + len(plain)) * 8 // 6
        for encode in (b64encode, urlsafe_b64encode):
            found.add(encode(bytes(before) + plain).decode()[first:last])
    return found


def _references(part: object) -> Iterable[SecretRef]:
    if isinstance(part, SecretRef):
        yield part
    elif isinstance(part, BaseModel):
        for value in dict(part).values():
            yield from _references(value)
    elif isinstance(part, tuple):
        for value in part:
            yield from _references(value)


def without(secrets: Iterable[str], text: str) -> str:
    """The text with every secret blotted out. Pure."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text
