"""Where secrets are that should be nowhere: in files, and in the list of processes.

`python -m tests.leaks --env NAME PLACE... [-- COMMAND...]` runs the command, watches all processes meanwhile, then
looks through the files and folders; it ends with 1 where it found something. It shares nothing with what blots secrets
out: coded text is decoded and searched.
"""

import argparse
import base64
import binascii
import html
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote_to_bytes

from environments.faults import secret_references
from environments.load import find, load
from environments.secret import SecretMissing

SHORTEST = 6
CODED = re.compile(rb"[A-Za-z0-9+/_-]{8,}={0,2}")
ESCAPED = re.compile(r'\\(["\\/bfnrt]|u[0-9a-fA-F]{4})')
ROUNDS = 3  # coded text within coded text, as a page within a page's data: address
INTERVAL_S = 0.05


def held(content: bytes, secrets: Iterable[str]) -> list[str]:
    """In which forms some content holds a secret, by the number of the secret: `1 (base64)`. Pure."""
    wanted = [secret.encode() for secret in secrets]
    found: dict[int, str] = {}
    for form, text in forms(content):
        for number, secret in enumerate(wanted, 1):
            if len(secret) >= SHORTEST and secret in text:
                found.setdefault(number, form)
    return [f"secret {number} ({form})" for number, form in found.items()]


def forms(content: bytes) -> Iterator[tuple[str, bytes]]:
    """What some content says, as it stands and decoded. Pure."""
    yield "plain", content
    yield "of an address", unquote_to_bytes(content.replace(b"+", b" "))
    yield "of an address", unquote_to_bytes(content)
    text = content.decode(errors="replace")
    yield "HTML", html.unescape(text).encode()
    yield "JSON", ESCAPED.sub(lambda found: str(json.loads(f'"{found[0]}"')), text).encode(errors="replace")
    layer = content
    for _ in range(ROUNDS):
        layer = b"\n".join(_decoded(layer))
        yield "base64", layer


def _decoded(content: bytes) -> Iterator[bytes]:
    """What every run of base64 means, wherever it begins: text before it shifts it by up to three characters."""
    for run in CODED.findall(content.replace(b"\\n", b"\n")):
        plain = run.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        for start in range(4):
            part = plain[start:]
            with suppress(binascii.Error):
                yield base64.b64decode(part[: len(part) - (len(part) % 4 == 1)] + b"==")


def leaks(place: Path, secrets: Iterable[str]) -> list[str]:
    """Each file at or below `place` that holds a secret, in its content or name, and in which form."""
    known = list(secrets)
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
    told = [(file, held(file.read_bytes(), known) or held(str(file).encode(), known)) for file in files]
    return [f"{file}: {', '.join(found)}" for file, found in told if found]


def in_processes(secrets: Iterable[str], root: int) -> list[str]:
    """Processes that show a secret: in any command line, guests' too, and in the environments of `root`'s children.

    A variable that `root` was given is its user's way to tell the secret. What runs in a guest has rules of its own.
    """
    known, given = list(secrets), _read(root, "environ").split(b"\0")
    found = []
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        line = _read(pid, "cmdline")
        if told := held(line, known):
            found.append(f"command line of {line.split(bytes(1))[0].decode(errors='replace')}: {', '.join(told)}")
        if root in _ancestors(pid) and _namespace(pid) == _namespace(root):
            own = b"\0".join(one for one in _read(pid, "environ").split(b"\0") if one not in given)
            if told := held(own, known):
                name = _read(pid, "comm").decode(errors="replace").strip()
                found.append(f"environment of {name}: {', '.join(told)}")
    return found


def _namespace(pid: int) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return ""


def _ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        told = re.search(rb"^PPid:\s+(\d+)", _read(pid, "status"), re.MULTILINE)
        pid = int(told[1]) if told else 0
        yield pid


def _read(pid: int, what: str) -> bytes:
    with suppress(OSError):  # it has ended
        return Path(f"/proc/{pid}/{what}").read_bytes()
    return b""


@contextmanager
def watched(secrets: Callable[[], Iterable[str]], root: int) -> Iterator[set[str]]:
    """Look at the processes again and again while the block lasts; gives what was found, when it is over."""
    found, over = set[str](), threading.Event()

    def watch() -> None:
        while not over.is_set():
            found.update(in_processes(secrets(), root))
            over.wait(INTERVAL_S)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()


def of_environment(name_or_file: str) -> Mapping[str, str]:
    """The secrets of an environment that can be read now, by their keys; a key in PEM by its lines."""
    found = {}
    for key, reference in secret_references(load(find(name_or_file))):
        with suppress(SecretMissing):
            for number, line in enumerate(reference.reveal().splitlines(), 1):
                if not line.startswith("-----"):
                    found[f"{key}:{number}"] = line
    return found


def main(words: Sequence[str]) -> int:
    """Look, and say what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.leaks", description="Where secrets are that should not be.")
    parser.add_argument("--env", default="lab", metavar="NAME|FILE")
    parser.add_argument("places", nargs="+", type=Path)
    own, command = (words, ()) if "--" not in words else (words[: words.index("--")], words[words.index("--") + 1 :])
    options = parser.parse_args(own)
    found: set[str] = set()
    if command:
        with watched(lambda: of_environment(options.env).values(), os.getpid()) as seen:
            subprocess.run(command, check=False)
        found |= seen
    secrets = of_environment(options.env)
    for place in options.places:
        found.update(leaks(place, secrets.values()))
    told = [f"secret {number}: {key}" for number, key in enumerate(secrets, 1)]
    sys.stdout.write("\n".join([*told, *(sorted(found) or ["found nowhere"])]) + "\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
