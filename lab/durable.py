"""Files that are either the old or the new one after a power cut, never half of each."""

import json
import os
from pathlib import Path


def write_bytes(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `content` atomically; it is on disk when this returns. Raises OSError."""
    fresh = path.with_name(f".{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_directory(path.parent)


def write_json(path: Path, value: object) -> None:
    """Replace `path` by `value` as JSON, as `write_bytes` does."""
    write_bytes(path, json.dumps(value, indent=1).encode())


def sync_directory(path: Path) -> None:
    """Put the names in directory `path` on disk: a rename or unlink there has happened for good."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
