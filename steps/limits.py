"""What the document's single points do when they are gone: the site and the API, watched while they are."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import pytest
import requests
from kubernetes.client.exceptions import ApiException
from pytest_bdd import given, then, when

from chaos.facts import Live
from environments.model import Environment, Machine, Role
from provisioning.cluster import UNAVAILABLE, Cluster
from provisioning.machines import BOOT_TIMEOUT_S
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.public import PublicHost
from provisioning.session import Session
from provisioning.wordpress import NO_DATABASE, gist
from steps.edge import front_page_again
from steps.power import TAKEOVER_S, Power
from steps.site import Editor, answers, at_vip

# Twice what a takeover of the address may take: what has not gone by then was not about to.
WATCHED_S = 2 * TAKEOVER_S
WHOLE_TIMEOUT_S = BOOT_TIMEOUT_S  # and what runs on a machine is at work long before a slow one has booted
VISIT_TIMEOUT_S = 20
RELOADED_S = 3  # a connection that broke is no outage; a page that still does not come after this is
WRITE_TIMEOUT_S = 10
NO_CONNECTOR = 530


@pytest.fixture
def whole_again(target: Session, cluster: Cluster, power: Power) -> Iterator[None]:
    """Gives the power back and waits until all is whole: the next scenario starts from there.

    The time counts from the power's return: a scenario that has waited all of it in vain is not followed by as much.
    """
    _ = cluster.api  # read now: the machine that holds its key may be the one that is cut
    yield
    until_s = power.heal() + WHOLE_TIMEOUT_S
    left_s = max(1.0, until_s - time.monotonic())
    poll("a whole target", Live(target, cluster).whole, timeout_s=left_s, interval_s=1)


@given("a site that answers at its virtual address")
def site_answers(environment: Environment, whole_again: None) -> None:
    """Before anything is taken away."""
    poll("the site", lambda: answers(environment), timeout_s=VISIT_TIMEOUT_S, interval_s=0.5)


def cut(power: Power, machine: Machine) -> None:
    """Take the power of one machine."""
    power.cut((machine,))


@when("the second master loses its power")
def second_master_cut(power: Power, environment: Environment) -> None:
    """The one that is not the API's endpoint."""
    endpoint = environment.kubernetes.control_plane_endpoint
    cut(power, next(m for m in environment.with_role(Role.CONTROL_PLANE) if m.name != endpoint))


@when("the master that the API is named after loses its power")
def endpoint_cut(power: Power, environment: Environment) -> None:
    """The one that every node knows the API by."""
    cut(power, environment.machine(environment.kubernetes.control_plane_endpoint))


@when("the connector loses its power")
def connector_cut(power: Power, environment: Environment) -> None:
    """The only one."""
    cut(power, environment.with_role(Role.TUNNEL)[0])


@when("the SQL node loses its power")
def sql_cut(power: Power, environment: Environment) -> None:
    """The only one."""
    cut(power, environment.with_role(Role.NDB_SQL)[0])


@when("the management node loses its power")
def management_cut(power: Power, environment: Environment) -> None:
    """The only one."""
    cut(power, environment.with_role(Role.NDB_MANAGEMENT)[0])


@then("the Kubernetes API takes no writes")
def no_writes(cluster: Cluster) -> None:
    """Two members of etcd need two for a quorum; a dry run would not ask etcd, so something is truly written."""
    body = {"metadata": {"generateName": "haproof-limit-"}}

    def refused() -> bool:
        try:
            made = cluster.core.create_namespaced_config_map("default", body, _request_timeout=WRITE_TIMEOUT_S)
        except (ApiException, *UNAVAILABLE):
            return True
        cluster.core.delete_namespaced_config_map(made.metadata.name, "default", _request_timeout=WRITE_TIMEOUT_S)
        raise NotYet("a write was taken")

    try:
        poll("an API without a quorum", refused, timeout_s=WATCHED_S, interval_s=1)
    except DeadlineExceeded as error:
        raise AssertionError(f"expected the API to take no writes, found that {error.last_state}") from error


@then("the site goes on answering within the takeover of its address")
def goes_on_after_takeover(environment: Environment) -> None:
    """The master may be the one that announced it."""
    comes_back(environment, TAKEOVER_S)
    goes_on_answering(environment)


@then("the site answers at its virtual address and at the public host")
def answers_everywhere(environment: Environment) -> None:
    """Without anybody's help."""
    comes_back(environment, WHOLE_TIMEOUT_S)
    public_is_back(environment)


def comes_back(environment: Environment, timeout_s: float) -> None:
    """Wait for the site at its virtual address."""
    try:
        poll("the site", lambda: answers(environment), timeout_s=timeout_s, interval_s=0.5)
    except DeadlineExceeded as error:
        raise AssertionError(f"expected the site back, found {error.last_state}") from error


def public_is_back(environment: Environment) -> None:
    """Wait for the site at the public host."""
    front_page_again(PublicHost.of(environment.edge), environment)


@then("the public host says that it has no connector")
def no_connector(environment: Environment) -> None:
    """Cloudflare's own error for a tunnel that nobody serves: 1033, with status 530."""
    public = PublicHost.of(environment.edge)

    def told() -> bool:
        try:
            answer = public.get("/")
        except OSError as error:  # it has not noticed yet, and waits for the connector
            raise NotYet(str(error)) from error
        if (answer.status, "1033" in answer.text) != (NO_CONNECTOR, True):
            raise NotYet(f"it answers {answer.status}: {gist(answer.text)}")
        return True

    try:
        poll("a public host without connector", told, timeout_s=WHOLE_TIMEOUT_S, interval_s=0.5)
    except DeadlineExceeded as error:
        raise AssertionError(f"expected error 1033, found {error.last_state}") from error


@then("the public host answers again by itself once the connector is back")
def public_back(environment: Environment, power: Power) -> None:
    """Without anybody's help."""
    power.heal()
    public_is_back(environment)


@then("the site goes on answering")
def goes_on_answering(environment: Environment) -> None:
    """For a while."""
    until_s = time.monotonic() + WATCHED_S
    found = keep_visiting(environment, lambda: time.monotonic() < until_s)
    assert not found.lost, f"expected every visit answered, found {found}: {found.lost[0]}"


@dataclass
class Visits:
    """How visits went: those that broke off, and those of them that reloading did not mend."""

    made: int = 0
    broken: int = 0
    lost: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.made} visits, {self.broken} broken off, {len(self.lost)} of these lost"


def keep_visiting(environment: Environment, going_on: Callable[[], bool]) -> Visits:
    """Visit the front page, one visit after another; one that breaks off is reloaded, as people do."""
    found = Visits()
    while going_on():
        found.made += 1
        if told := failed_visit(environment):
            found.broken += 1
            try:
                poll("the page", lambda: not failed_visit(environment), timeout_s=RELOADED_S, interval_s=0.5)
            except DeadlineExceeded:
                found.lost.append(told)
    return found


def failed_visit(environment: Environment) -> str:
    """Why a visitor got no front page; empty when there was one."""
    try:
        reply = at_vip(environment).request("GET", "/", timeout_s=VISIT_TIMEOUT_S)
    except requests.RequestException as error:
        return f"{type(error).__name__}: {error}"
    return "" if reply.status_code == requests.codes.ok else f"{reply.status_code}: {gist(reply.text)}"


@then("the site says that it has no database")
def no_database(environment: Environment) -> None:
    """WordPress' own page, once its connections have given up."""

    def told() -> bool:
        try:
            reply = at_vip(environment).request("GET", "/", timeout_s=VISIT_TIMEOUT_S)
        except requests.RequestException as error:
            raise NotYet(type(error).__name__) from error
        if reply.status_code == requests.codes.ok:
            raise NotYet("the front page")
        if NO_DATABASE not in reply.text:
            raise NotYet(f"{reply.status_code}: {gist(reply.text)}")
        return True

    try:
        poll("a site without database", told, timeout_s=120, interval_s=0.5)
    except DeadlineExceeded as error:
        raise AssertionError(f"expected “{NO_DATABASE}”, found {error.last_state}") from error


@then("it answers again by itself once the SQL node is back")
def answers_again(environment: Environment, power: Power) -> None:
    """Without anybody's help."""
    power.heal()
    comes_back(environment, WHOLE_TIMEOUT_S)


@when("the file server loses its power while the editor uploads an image", target_fixture="pending_upload")
def upload_in_the_dark(editor: Editor, power: Power, environment: Environment) -> Iterator[Future[None]]:
    """Begun when the server is gone: it can only wait."""
    cut(power, environment.with_role(Role.NFS)[0])
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(editor.upload, timeout_s=WHOLE_TIMEOUT_S)


@then("the upload ends well once the file server is back")
def upload_ends(pending_upload: Future[None], power: Power) -> None:
    """It had not ended before, for longer than a mount would wait that gives up."""
    ended, _ = wait((pending_upload,), timeout=WATCHED_S)
    assert not ended, f"expected the upload to wait, found it ended: {pending_upload.exception()}"
    power.heal()
    pending_upload.result(timeout=WHOLE_TIMEOUT_S)
