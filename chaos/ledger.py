"""What the workload wrote, as it is found afterwards: rows, posts and files, each by the drill's own mark."""

import re
import shlex
from concurrent.futures import ThreadPoolExecutor

from chaos.history import Found
from environments.model import Environment, Role
from provisioning.database import Database, quoted
from provisioning.session import Session
from provisioning.ssh import Shell

PREFIX = "haproof-drill-"
TABLE_PREFIX = "haproof_drill_"


class Ledger:
    """Of one drill: made before it, read and cleared after it."""

    def __init__(self, session: Session, token: str) -> None:
        self.table = f"{TABLE_PREFIX}{token}"
        self.mark = f"{PREFIX}{token}-"
        self._database = session.database
        self._shell = session.shell
        self._environment = session.environment

    def make(self) -> None:
        """An empty table in the server's own engine, as a plugin's would be; raises ActionFailed.

        Its key is not unique: a row that is written twice is to be found twice.
        """
        self._database.query(
            f"CREATE TABLE {self._database.site.database}.{self.table} "
            "(name CHAR(16) NOT NULL, KEY (name), digest CHAR(64) NOT NULL, payload TEXT NOT NULL)"
        )

    def read(self) -> list[Found]:
        """What is there, with the digest of what is there, not of what was said to be; raises ActionFailed."""
        schema = self._database.site.database
        with ThreadPoolExecutor(1) as pool:
            uploads = pool.submit(files, self._environment, self._shell, self.mark)
            told = self._database.query(
                f"SELECT 'row', name, SHA2(payload, 256) FROM {schema}.{self.table}; "
                f"SELECT 'post', SUBSTRING(post_title, {len(self.mark) + 1}), SHA2(post_content, 256) "
                f"FROM {schema}.wp_posts "
                f"WHERE post_title LIKE {quoted(self.mark + '%')} AND post_type = 'post' AND post_status = 'publish'"
            )
        return [
            *(Found.model_validate({"sort": sort, "name": name, "digest": digest}) for sort, name, digest in told),
            *uploads.result(),
        ]

    def clear(self) -> None:
        """Leave nothing behind; raises ActionFailed."""
        drop = f"DROP TABLE IF EXISTS {self._database.site.database}.{self.table}"
        _forget(self._database, self._environment, self._shell, self.mark, drop)


def files(environment: Environment, shell: Shell, mark: str) -> list[Found]:
    """Uploads with the mark, as they lie on the file server; raises ActionFailed.

    A name that is taken gets a number: `NAME-1.png` is NAME once more.
    """
    told = shell.check(
        environment.with_role(Role.NFS)[0],
        _find(environment, f"{mark}*.png", "-exec sha256sum {} +"),
    )
    found = re.findall(rf"^([0-9a-f]{{64}})  .*/{re.escape(mark)}([0-9a-f]+)(?:-\d+)?\.png$", told, re.MULTILINE)
    return [Found(sort="upload", name=name, digest=digest) for digest, name in found]


def sweep(session: Session) -> None:
    """Clear what drills left that did not live to do it; raises ActionFailed."""
    database = session.database
    schema = database.site.database
    tables = (
        "SELECT table_name FROM information_schema.tables "
        f"WHERE table_schema = {quoted(schema)} AND table_name LIKE {quoted(TABLE_PREFIX + '%')}"
    )
    if left := _forget(database, session.environment, session.shell, PREFIX, tables):
        database.query("".join(f"DROP TABLE IF EXISTS {schema}.{table}; " for (table,) in left))


def _forget(database: Database, environment: Environment, shell: Shell, mark: str, then: str) -> list[tuple[str, ...]]:
    """The posts and files with the mark, and what WordPress keeps beside these posts; nothing of others.

    What the SQL `then` gives comes with the same login.
    """
    schema = database.site.database
    marked = f"FROM {schema}.wp_posts WHERE post_title LIKE {quoted(mark + '%')}"
    rows = (
        # All or nothing: a category counts its published posts (wp-includes/taxonomy.php, _update_post_term_count).
        "START TRANSACTION; "
        f"UPDATE {schema}.wp_term_taxonomy t JOIN (SELECT term_taxonomy_id, COUNT(*) AS gone "
        f"FROM {schema}.wp_term_relationships WHERE object_id IN (SELECT ID {marked} AND post_status = 'publish') "
        "GROUP BY term_taxonomy_id) r USING (term_taxonomy_id) SET t.count = t.count - r.gone; "
        f"DELETE FROM {schema}.wp_term_relationships WHERE object_id IN (SELECT ID {marked}); "
        f"DELETE FROM {schema}.wp_postmeta WHERE post_id IN (SELECT ID {marked}); "
        f"DELETE {marked}; COMMIT; "
    )
    server = environment.with_role(Role.NFS)[0]
    with ThreadPoolExecutor(1) as pool:
        uploads = pool.submit(shell.check, server, _find(environment, f"{mark}*", "-delete"))
        told = database.query(rows + then)
    uploads.result()
    return told


def _find(environment: Environment, names: str, then: str) -> str:
    """What to do with uploads of these names; the folder comes with the first upload."""
    folder = shlex.quote(f"{environment.nfs.export}/wp-content/uploads")
    return f"test ! -d {folder} || find {folder} -name {shlex.quote(names)} {then}"
