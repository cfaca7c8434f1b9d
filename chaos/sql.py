"""A connection to the site's database, as those who ask it and those who write to it make one."""

import pymysql


def connected(
    host: str, port: int, user: str, password: str, database: str, timeout_s: float
) -> "pymysql.Connection[pymysql.cursors.Cursor]":
    """One on which each statement is a transaction of its own, and no answer is waited for longer than `timeout_s`.

    That is in seconds. Raises pymysql.err.Error.
    """
    return pymysql.connect(
        host=host,
        port=port,
        user=user,
        password=password,
        database=database,
        connect_timeout=max(1, round(timeout_s)),
        read_timeout=timeout_s,
        write_timeout=timeout_s,
        # As the site does. What trusts all that the machine does is made anew each time, 40 ms of a processor.
        ssl_disabled=True,
        autocommit=True,
    )
