"""Reading a file of events while others write to it."""

from dataclasses import dataclass
from pathlib import Path

from chaos.history import Event, parse


@dataclass
class Tail:
    """What is added to a file of events, as it comes."""

    file: Path
    _offset: int = 0

    def read(self) -> list[Event]:
        """The events since the last time; a line that is still being written is for the next."""
        if not self.file.exists():
            return []
        with self.file.open("rb") as lines:
            lines.seek(self._offset)
            text = lines.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return list(parse(whole.decode()))
