"""References to secrets: where a value lies, never the value."""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator


class SecretMissing(Exception):
    """The reference points at nothing; the message says what to set or write, and names no value."""


class SecretRef(BaseModel):
    """`env:NAME` or `file:PATH`. Printing or serialising it shows the reference."""

    model_config = ConfigDict(frozen=True)
    reference: Annotated[str, Field(pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:.+)$")]

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        # Whatever else stands here may be the secret: it is judged as a reference, whose faults repeat no value.
        named = isinstance(value, dict) and value.keys() == {"reference"}
        return value if named or isinstance(value, SecretRef) else {"reference": value}

    @model_serializer
    def _as_text(self) -> str:
        return self.reference

    def __str__(self) -> str:
        return self.reference

    @property
    def path(self) -> Path | None:
        """The file referred to, or None when the reference is to a variable."""
        kind, _, where = self.reference.partition(":")
        return Path(where).expanduser() if kind == "file" else None

    def reveal(self) -> str:
        """Read the value now; raises SecretMissing when nothing, or nothing readable, is there."""
        try:
            path = self.path
        except RuntimeError as error:  # ~NAME of somebody who has no home here
            raise SecretMissing(f"{self.reference} leads nowhere: {error}") from error
        if path is None:
            name = self.reference.partition(":")[2]
            value = os.environ.get(name, "")
            if not value:
                raise SecretMissing(f"the environment variable {name} is not set; export it with the secret")
            return value
        try:
            value = path.read_text().strip()
        except OSError as error:
            raise SecretMissing(f"{path} cannot be read ({error.strerror}); write the secret there") from error
        except UnicodeDecodeError as error:
            raise SecretMissing(f"{path} is no text; write the secret there, and nothing else") from error
        except ValueError as error:
            raise SecretMissing(f"{self.reference!r} can be no file's name: {error}") from error
        if not value:
            raise SecretMissing(f"{path} is empty; write the secret there")
        return value
