"""Every certified run, in one SQLite file, so that one can be held against those before it."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from certificate.figures import of_run
from certificate.record import Record
from certificate.trend import Effect, effect

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
class Change:
    """A figure of a run that is worse than in the runs before it."""

    name: str
    value: float
    effect: Effect

    def __str__(self) -> str:
        effect = self.effect
        return (
            f"slower than before: {self.name}: {self.value:.1f}, usually {effect.usual:.1f}; "
            f"{effect.difference:+.1f} (95 %: {effect.low:+.1f} to {effect.high:+.1f})"
        )


@dataclass(frozen=True)
class Run:
    """A line of the history: verdicts by promise, and figures by name."""

    began: str
    outcome: str
    software: str
    folder: str
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

    def add(self, folder: Path, record: Record) -> tuple[Change, ...]:
        """Keep a run, and tell what became worse than in earlier runs of the same environment."""
        figures = of_run(record, folder)
        changes = tuple(self._changes(record, figures))
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
        self._connection.executemany("INSERT INTO figure VALUES (?, ?, ?)", [(run, *pair) for pair in figures.items()])
        return changes

    def _changes(self, record: Record, figures: dict[str, float]) -> Iterator[Change]:
        for name, value in figures.items():
            rows = self._connection.execute(
                "SELECT value FROM figure JOIN run ON run = id"
                " WHERE environment = ? AND sha256 = ? AND name = ? ORDER BY began",
                (record.environment, record.sha256, name),
            )
            found = effect(value, [row[0] for row in rows])
            if found is not None and found.is_worse:
                yield Change(name, value, found)

    def runs(self, environment: str, last: int) -> list[Run]:
        """The last runs of an environment, in the order of their time."""
        rows = self._connection.execute(
            "SELECT id, began, outcome, software, folder FROM run WHERE environment = ? ORDER BY began DESC LIMIT ?",
            (environment, last),
        ).fetchall()
        return [
            Run(
                began=row[0],
                outcome=row[1],
                software=row[2],
                folder=row[3],
                promises=dict(self._connection.execute("SELECT id, verdict FROM promise WHERE run = ?", (number,))),
                figures=dict(self._connection.execute("SELECT name, value FROM figure WHERE run = ?", (number,))),
            )
            for number, *row in reversed(rows)
        ]
