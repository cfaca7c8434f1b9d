"""`python -m tests.answers`: a site whose answers cost next to nothing and take as long as they are told to.

Prints its port. With delays, the n-th question of a path takes the n-th of them, again and again, so that two who ask
the same of it at once are told the same. SIGUSR1 makes it stand still for three seconds; whoever comes then waits.
"""

import argparse
import asyncio
import itertools
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BODY = b"<html><body>a page</body></html>\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
STALL_S = 3.0


class Answers:
    """What all connections share: the delays of each path, and until when everything stands still."""

    def __init__(self, delays_s: tuple[float, ...]) -> None:
        self._delays_s = delays_s
        self._next: dict[bytes, Iterator[float]] = {}
        self._still_until_s = 0.0

    def stand_still(self) -> None:
        """From now on."""
        self._still_until_s = asyncio.get_running_loop().time() + STALL_S

    def wait_s(self, path: bytes) -> float:
        """How long this question waits."""
        delays_s = self._next.setdefault(path, itertools.cycle(self._delays_s)) if self._delays_s else None
        still_s = self._still_until_s - asyncio.get_running_loop().time()
        return max(0.0, still_s) + (next(delays_s) if delays_s else 0.0)


class Connection(asyncio.Protocol):
    """One of HTTP/1.1, whose requests have no bodies."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._read = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Of asyncio."""
        self._read += data
        while (end := self._read.find(b"\r\n\r\n")) >= 0:
            path = self._read.split(b" ", 2)[1]
            self._read = self._read[end + 4 :]
            if wait_s := self._answers.wait_s(path):
                asyncio.get_running_loop().call_later(wait_s, self._answer)
            else:
                self._answer()

    def _answer(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(ANSWER)


async def serve(delays_s: tuple[float, ...]) -> None:
    """Until it is ended."""
    loop, answers = asyncio.get_running_loop(), Answers(delays_s)
    server = await loop.create_server(lambda: Connection(answers), "127.0.0.1", 0, backlog=4096)
    loop.add_signal_handler(signal.SIGUSR1, answers.stand_still)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


@contextmanager
def answering(*delays_s: float, core: int | None = None) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Such a site in a process of its own, on a core of its own where one is given: its URL, and the process."""
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    command = [*pinned, sys.executable, "-m", "tests.answers", *map(str, delays_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/", process
        finally:
            process.terminate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("delay_s", type=float, nargs="*")
    asyncio.run(serve(tuple(parser.parse_args().delay_s)))
