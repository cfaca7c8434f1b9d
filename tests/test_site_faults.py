"""What goes wrong under a built site: each is one clear error with its cause, and the next run puts it right."""

import re
from collections.abc import Iterator
from unittest import mock

import pytest
from pydantic import BaseModel

from environments.model import Environment, Machine, Role
from provisioning.action import Action, BuildFailed
from provisioning.build import bring_up
from provisioning.cluster import REQUEST_TIMEOUT_S, Cluster
from provisioning.ndb import NdbStarted
from provisioning.poll import NotYet, poll
from provisioning.session import Session
from provisioning.site import NAMESPACE, SELECTOR, SiteDeclared, SiteInstalled, SiteRunning, unready_replicas
from tests.live_lab import build, whole

pytestmark = pytest.mark.lab
PATIENCE_S = 60


@pytest.fixture(scope="module")
def built(lab_target: Session) -> Session:
    """The lab's target; a build of what is built changes nothing."""
    done = build()
    assert done.stderr.endswith("\n0 changed\n"), done.stderr
    return lab_target


@pytest.fixture
def target(built: Session) -> Iterator[Session]:
    """The lab's target, which the next run makes whole again: by its actions after those that make machines."""
    yield built
    whole(built, since=NdbStarted.name)


def only(target: Session, role: Role) -> Machine:
    return target.environment.with_role(role)[0]


def changed(model: Environment, **sections: dict[str, object]) -> Environment:
    """The environment with some keys of some sections changed."""

    def section(name: str, keys: dict[str, object]) -> BaseModel:
        held: BaseModel = getattr(model, name)
        return held.model_copy(update=keys)

    return model.model_copy(update={name: section(name, keys) for name, keys in sections.items()})


def stopped_at(action: Action) -> str:
    """What a build says that stops at an action, which it names."""
    with pytest.raises(BuildFailed) as raised:
        bring_up([action], mock.Mock())
    told = str(raised.value)
    assert f"stopped at “{action.name}”" in told
    return told


def test_an_image_that_the_registry_has_not_is_told_at_once_and_the_site_stays(target: Session) -> None:
    environment = changed(target.environment, wordpress={"image": "wordpress:no-such"})
    cluster = Cluster(environment, target.shell)
    SiteDeclared(cluster, target.database, lambda: True).apply()
    told = stopped_at(SiteRunning(cluster, lambda: True, PATIENCE_S))
    assert re.search(r"no such image; correct wordpress.image.*wordpress:no-such", told)
    assert re.search(r"srvk8s-worker0\d", told)
    assert not SiteInstalled(cluster, target.database, lambda: True).pending()


def test_an_export_that_is_not_there_is_told_by_server_and_path(target: Session) -> None:
    server, cluster = only(target, Role.NFS), target.cluster
    source = f"{target.environment.reached_from(only(target, Role.WORKER), server)}:{target.environment.nfs.export}"
    target.shell.check(server, "mv /etc/ganesha/ganesha.conf /srv/ && echo > /etc/ganesha/ganesha.conf")
    target.shell.check(server, "systemctl restart nfs-ganesha")
    try:
        pods = cluster.core.list_namespaced_pod(NAMESPACE, label_selector=SELECTOR, _request_timeout=REQUEST_TIMEOUT_S)
        victim = pods.items[0].metadata.name
        cluster.core.delete_namespaced_pod(
            victim, NAMESPACE, grace_period_seconds=0, _request_timeout=REQUEST_TIMEOUT_S
        )

        def missed() -> bool:
            told = unready_replicas(cluster)
            if not any(source in line for line in told):
                raise NotYet("; ".join(told))
            return True

        poll("a mount that fails", missed, timeout_s=PATIENCE_S, interval_s=1)
        told = stopped_at(SiteRunning(cluster, lambda: True, 5))
    finally:
        target.shell.check(server, "mv /srv/ganesha.conf /etc/ganesha/ && systemctl restart nfs-ganesha")
    assert "every replica of the site" in told
    assert re.search(r"srvk8s-worker0\d: FailedMount", told)
    assert source in told


def test_a_password_that_was_changed_by_hand_is_told_and_put_right(target: Session) -> None:
    database, cluster = target.database, target.cluster
    database.query(f"ALTER USER {database.account} IDENTIFIED BY 'another one'")
    told = stopped_at(SiteInstalled(cluster, database, lambda: True, 5))
    assert "the password there is another one" in told
    assert f"machine: {database.machine.name}" in told
    assert target.environment.wordpress.database_password.reveal() not in told


def test_a_sql_node_that_is_away_while_wordpress_is_installed_is_named(target: Session) -> None:
    database, cluster = target.database, target.cluster
    target.shell.check(database.machine, "systemctl stop mysql")
    told = stopped_at(SiteInstalled(cluster, database, lambda: True, 10))
    assert "finds no database at 172.31.0.120:3306 on srvdbm-sql01" in told
    assert "machine: srvdbm-sql01" in told


def test_a_connector_whose_token_was_revoked_gets_the_new_one(target: Session) -> None:
    shell, connector = target.shell, only(target, Role.TUNNEL)
    shell.check(connector, "echo TUNNEL_TOKEN=revoked > /etc/cloudflared/environment && systemctl restart cloudflared")
    assert "give the connector the tunnel's token" in build("lab", "--plan").stderr
