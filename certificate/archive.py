"""Every certified run, in one SQLite file, so that one can be held against those before it."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from certificate.record import Change, Record
from certificate.trend import effects

SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
    id INTEGER PRIMARY KEY, environment TEXT NOT NULL, sha256 TEXT NOT NULL, began TEXT NOT NULL,
    software TEXT NOT NULL, outcome TEXT NOT NULL, folder TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS promise (
    run INTEGER NOT NULL REFERENCES run (id), id TEXT NOT NULL, verdict TEXT NOT NULL, PRIMARY KEY (run, id));
CREATE TABLE IF NOT EXISTS figure (
    run INTEGER NOT NULL REFERENCES run (id), name TEXT NOT NULL, value REAL NOT NULL, PRIMARY KEY (run, name));
"""
BUSY_TIMEOUT_S = 30


@dataclass(frozen=True)
class Run:
    """A line of the history: verdicts by promise, and figures by name."""

    began: str
    outcome: str
    software: str
    folder: str
    sha256: str
    promises: dict[str, str]
    figures: dict[str, float]


class Archive:
    """The file, open; what is added is added whole or not at all."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.executescript(SCHEMA)

    @classmethod
    @contextmanager
    def at(cls, file: Path) -> Iterator["Archive"]:
        """The archive in `file`, made when missing; raises OSError when it is none or cannot be used."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(file, timeout=BUSY_TIMEOUT_S)) as connection, connection:
                yield cls(connection)
        except sqlite3.Error as error:
            raise OSError(f"{file} cannot be used as the history: {error}; move it away to begin anew") from error

    @classmethod
    @contextmanager
    def of_user(cls) -> Iterator["Archive"]:
        """The user's own (XDG state folder)."""
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        with cls.at(base / "haproof" / "history.sqlite") as archive:
            yield archive

    def compared(self, record: Record) -> Record:
        """The record, with what became worse than in earlier runs of the same description."""
        of_it = "WHERE environment = ? AND sha256 = ?"
        rows = self._connection.execute(
            f"SELECT name, value FROM figure JOIN run ON run = id {of_it} ORDER BY began",
            (record.environment, record.sha256),
        )
        earlier: dict[str, list[float]] = {}
        for name, value in rows:
            earlier.setdefault(name, []).append(value)
        (count,) = self._connection.execute(
            f"SELECT COUNT(*) FROM run {of_it}", (record.environment, record.sha256)
        ).fetchone()
        found = effects(record.figures, earlier)
        slower = tuple(
            Change(
                name=name,
                value=record.figures[name],
                usual=one.usual,
                difference=one.difference,
                low=one.low,
                high=one.high,
            )
            for name, one in found.items()
            if one.is_worse
        )
        return record.model_copy(update={"compared_with": count, "figures_compared": len(found), "slower": slower})

    def add(self, folder: Path, record: Record) -> None:
        """Keep a run."""
        run = self._connection.execute(
            "INSERT INTO run (environment, sha256, began, software, outcome, folder) VALUES (?, ?, ?, ?, ?, ?)",
            (
                record.environment,
                record.sha256,
                record.began.isoformat(timespec="seconds"),
                record.software.commit,
                str(record.outcome),
                str(folder.resolve()),
            ),
        ).lastrowid
        self._connection.executemany(
            "INSERT INTO promise VALUES (?, ?, ?)", [(run, row.promise.id, str(row.verdict)) for row in record.promises]
        )
        self._connection.executemany(
            "INSERT INTO figure VALUES (?, ?, ?)", [(run, *pair) for pair in record.figures.items()]
        )

    def runs(self, environment: str, last: int) -> list[Run]:
        """The last runs of an environment, in the order of their time."""
        rows = self._connection.execute(
            "SELECT id, began, outcome, software, folder, sha256 FROM run WHERE environment = ?"
            " ORDER BY began DESC LIMIT ?",
            (environment, last),
        ).fetchall()
        return [
            Run(
                began=row[0],
                outcome=row[1],
                software=row[2],
                folder=row[3],
                sha256=row[4],
                promises=dict(self._connection.execute("SELECT id, verdict FROM promise WHERE run = ?", (number,))),
                figures=dict(self._connection.execute("SELECT name, value FROM figure WHERE run = ?", (number,))),
            )
            for number, *row in reversed(rows)
        ]
