"""Letters with PINs: what would reach people by e-mail, kept until it is read, and nothing on disk."""

from collections import deque

KEPT = 100


class Mailbox:
    """The last letters to each address."""

    def __init__(self) -> None:
        self._letters: dict[str, deque[str]] = {}

    def send(self, address: str, text: str) -> None:
        """Deliver a letter."""
        self._letters.setdefault(address.lower(), deque(maxlen=KEPT)).append(text)

    def read(self, address: str) -> list[str]:
        """Every letter to an address, oldest first."""
        return list(self._letters.get(address.lower(), ()))
