"""HTTP servers of tests, which answer in a thread of their own for as long as a block lasts."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import BaseServer
from typing import TypeVar

SomeServer = TypeVar("SomeServer", bound=BaseServer)
POLL_S = 0.02


@contextmanager
def served(server: SomeServer) -> Iterator[SomeServer]:
    """The server, answering; shut down whatever becomes of the block: without its socket it would spin."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(POLL_S,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
