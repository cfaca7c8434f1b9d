"""Rows inserted while something is broken: each under a name of its own, and each acknowledgement on the disk first.

A process of its own, `python -m chaos.workload FILE`, with the plan on its standard input; SIGTERM ends it.
"""

import argparse
import hashlib
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import pymysql
from pydantic import BaseModel, ConfigDict, Field

from chaos.history import Recorder, Write

PAYLOAD_BYTES = 200


class Plan(BaseModel):
    """Where rows go, and how often one does. The table has `name`, `digest` and `payload`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    host: str
    port: int
    user: str
    password: str
    database: str
    table: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    interval_s: Annotated[float, Field(gt=0)] = 0.1
    timeout_s: Annotated[float, Field(gt=0)] = 10.0


class Writer:
    """Inserts rows over one connection, made anew when it fails; a row that failed is never tried again."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._connection: pymysql.Connection[pymysql.cursors.Cursor] | None = None

    def insert(self, intended_s: float) -> Write:
        """Insert one row of its own and tell how it went."""
        payload = secrets.token_hex(PAYLOAD_BYTES // 2)
        name, digest = secrets.token_hex(8), hashlib.sha256(payload.encode()).hexdigest()
        started_s, error = time.monotonic(), ""
        try:
            self._insert(name, digest, payload)
        except Exception as failure:  # noqa: BLE001 - whatever it was, nothing was acknowledged; the history says what
            error = f"{type(failure).__name__}: {failure}"
            self.close()
        return Write(
            sort="row",
            name=name,
            digest=digest,
            intended_s=intended_s,
            started_s=started_s,
            ended_s=time.monotonic(),
            error=error,
        )

    def close(self) -> None:
        """Leave the connection, in whatever state it is."""
        if self._connection is not None:
            with suppress(pymysql.err.Error, OSError):
                self._connection.close()
        self._connection = None

    def _insert(self, name: str, digest: str, payload: str) -> None:
        plan = self._plan
        if self._connection is None:
            self._connection = pymysql.connect(
                host=plan.host,
                port=plan.port,
                user=plan.user,
                password=plan.password,
                database=plan.database,
                connect_timeout=max(1, round(plan.timeout_s)),
                read_timeout=plan.timeout_s,
                write_timeout=plan.timeout_s,
                autocommit=True,
            )
        with self._connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {plan.table} VALUES (%s, %s, %s)", (name, digest, payload))


def write_all(plan: Plan, record: Callable[[Write], None], stop: threading.Event) -> None:
    """Insert a row every interval until `stop`; rows whose time passes while one waits are intended, and come late."""
    writer, due_s = Writer(plan), time.monotonic()
    while not stop.wait(max(0.0, due_s - time.monotonic())):
        record(writer.insert(due_s))
        due_s += plan.interval_s
    writer.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the plan, write until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m chaos.workload", description=__doc__)
    parser.add_argument("file", type=Path, help="the ledger; must not exist")
    file = parser.parse_args(arguments).file
    plan = Plan.model_validate_json(sys.stdin.read())
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the drill's: it ends this process in its order
    ledger = Recorder.into(file)
    write_all(plan, lambda write: ledger.record(write, durable=True), stop)
    ledger.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
