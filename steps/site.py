"""The site: its replicas, what editors publish and upload, and whether every replica is the same site."""

import base64
import re
import secrets
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
import requests
from kubernetes.client.exceptions import ApiException
from pytest_bdd import given, then, when

from chaos.judgement import PAGE_PATIENCE_S
from environments.model import Environment, Role
from provisioning.cluster import REQUEST_TIMEOUT_S, UNAVAILABLE, Cluster
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.session import Session
from provisioning.site import CLAIM, NAME, NAMESPACE, SELECTOR, VOLUME, site_pods
from provisioning.wordpress import TIMEOUT_S, Media, Post, WordPress, png
from steps.complaints import none_of, unless
from steps.pods import Pod, printed

REPLICAS_TIMEOUT_S, ONE_MORE_TIMEOUT_S = 240, 90  # one more starts among others that are well
SEEN_TIMEOUT_S = 30
FILES = "/var/www/html"
MOUNT_TYPES = ("nfs", "nfs4", "fuse.nfs")


@dataclass
class Editor:
    """Somebody who is logged in, and what they leave behind until it is cleared."""

    visitor: WordPress
    posts: list[Post] = field(default_factory=list)
    media: list[tuple[Media, bytes]] = field(default_factory=list)

    def publish(self) -> None:
        """A post with a title that nothing else has."""
        token = secrets.token_hex(8)
        self.posts.append(self.visitor.publish(f"haproof {token}", f"Published by a scenario: {token}"))

    def upload(self, timeout_s: float = TIMEOUT_S) -> None:
        """An image that nothing else has."""
        image = png(secrets.token_bytes(3))
        made = self.visitor.upload(f"haproof-{secrets.token_hex(4)}.png", image, timeout_s)
        self.media.append((made, image))

    def clear(self) -> None:
        """Remove all of it."""
        for post in self.posts:
            self.visitor.delete("posts", post.id)
        for found, _ in self.media:
            self.visitor.delete("media", found.id)


def at_vip(environment: Environment) -> WordPress:
    """A visitor at the virtual address."""
    return WordPress(f"http://{environment.wordpress.vip}")


@dataclass
class Entrances:
    """The ways to single replicas, whose addresses only the cluster's machines reach: tunnels, opened once each."""

    target: Session
    held: ExitStack
    ports: dict[Pod, int] = field(default_factory=dict)

    def at(self, replica: Pod, visitor: WordPress | None = None) -> WordPress:
        """A visitor, or the same one, at one replica, who asks for the site by its virtual address."""
        if replica not in self.ports:
            node = self.target.environment.machine(replica.node)
            self.ports[replica] = self.held.enter_context(self.target.shell.tunnel(node, replica.address, 80))
        return (visitor or at_vip(self.target.environment)).at(f"http://127.0.0.1:{self.ports[replica]}")


@pytest.fixture
def entrances(target: Session) -> Iterator[Entrances]:
    """Closed at the end of the scenario."""
    with ExitStack() as held:
        yield Entrances(target, held)


def ready_replicas(cluster: Cluster) -> tuple[Pod, ...]:
    """The site's Pods that are Ready and not on their way out; raises ApiException."""
    return tuple(
        Pod(pod.metadata.name, pod.status.pod_ip, pod.spec.node_name)
        for pod in site_pods(cluster)
        if pod.metadata.deletion_timestamp is None
        and any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or [])
    )


@pytest.fixture
def replicas(cluster: Cluster) -> tuple[Pod, ...]:
    """The site's replicas as the scenario finds them."""
    return ready_replicas(cluster)


@pytest.fixture
def editor(environment: Environment) -> Iterator[Editor]:
    """The site's administrator, logged in at the virtual address; what they leave is removed."""
    visitor = at_vip(environment)
    visitor.log_in(environment.wordpress.admin_user, environment.wordpress.admin_password.reveal())
    editor = Editor(visitor)
    yield editor
    editor.clear()


@given("an editor who is logged in at the virtual address")
def logged_in(editor: Editor) -> None:
    """See `editor`."""


@given("an editor who is logged in on one replica", target_fixture="visitor")
def logged_in_on_one(environment: Environment, replicas: tuple[Pod, ...], entrances: Entrances) -> WordPress:
    """On the first one only."""
    visitor = entrances.at(replicas[0])
    visitor.log_in(environment.wordpress.admin_user, environment.wordpress.admin_password.reveal())
    return visitor


@given("a post and an image of the editor's")
def post_and_image(editor: Editor) -> None:
    """Both new."""
    editor.publish()
    editor.upload()


@when("the editor publishes a post")
def publish(editor: Editor) -> None:
    """By the REST interface."""
    editor.publish()


@when("the editor uploads an image")
def upload(editor: Editor) -> None:
    """By the REST interface."""
    editor.upload()


@then("as many replicas as declared are Ready on different workers")
def replicas_are_spread(replicas: tuple[Pod, ...], environment: Environment) -> None:
    """Two on one worker would fall with it."""
    workers = {machine.name for machine in environment.with_role(Role.WORKER)}
    wanted = environment.wordpress.replicas
    nodes = [replica.node for replica in replicas]
    told = ", ".join(f"{replica.name} on {replica.node}" for replica in replicas) or "none"
    assert len(replicas) == wanted, f"expected {wanted} replicas Ready, found {told}"
    assert set(nodes) <= workers, f"expected replicas on workers only, found {told}"
    most = -(-wanted // len(workers))
    assert all(nodes.count(node) <= most for node in nodes), f"expected at most {most} on a worker, found {told}"


def page_of(visitor: WordPress) -> str:
    """The front page; raises AssertionError when there is none."""
    reply = visitor.request("GET", "/")
    assert reply.status_code == requests.codes.ok, f"expected the front page, found status {reply.status_code}"
    return reply.text


@then("the front page shows it at the virtual address and on every replica")
def front_page_shows(editor: Editor, environment: Environment, replicas: tuple[Pod, ...], entrances: Entrances) -> None:
    """To somebody who is not logged in."""
    pages = {"virtual address": page_of(at_vip(environment))}
    pages |= {replica.name: page_of(entrances.at(replica)) for replica in replicas}
    none_of(
        {
            name: [
                f"expected “{post.title}” on the front page, and it is not there"
                for post in editor.posts
                if post.title not in page
            ]
            for name, page in pages.items()
        }
    )


@then("every replica serves it byte for byte")
def every_replica_serves(editor: Editor, replicas: tuple[Pod, ...], entrances: Entrances) -> None:
    """What was uploaded, from the replica's own view of the files."""
    complaints = {}
    for replica in replicas:
        lines = []
        for found, image in editor.media:
            reply = entrances.at(replica).request("GET", found.path)
            lines += unless(
                reply.content == image,
                f"expected {found.path} as uploaded, found status {reply.status_code}, {len(reply.content)} bytes",
            )
        complaints[replica.name] = lines
    none_of(complaints)


@then("the editor is logged in on every replica")
def logged_in_everywhere(visitor: WordPress, replicas: tuple[Pod, ...], entrances: Entrances) -> None:
    """Replicas with salts of their own would not know each other's cookies."""
    none_of(
        {
            replica.name: unless(
                entrances.at(replica, visitor).is_logged_in(),
                f"expected the login on {replicas[0].name} to be valid here, and it is not",
            )
            for replica in replicas
        }
    )


def gives_up_after_s(resolv_conf: str) -> int:
    """Seconds that a name is asked for which no server answers, by what resolv.conf(5) says. Pure.

    `attempts` times `timeout` (5 s and 2 by themselves), and that twice: 20 s were measured with these, 4 s with
    `timeout:1 attempts:2`, 6 s with three attempts (glibc 2.36, curl 7.88, one server).
    """
    options = dict(re.findall(r"\b(timeout|attempts):(\d+)", resolv_conf))
    return 2 * int(options.get("timeout", 5)) * int(options.get("attempts", 2))


@then("every replica gives such a name up before a visitor gives up the page")
def names_are_given_up(cluster: Cluster, replicas: tuple[Pod, ...]) -> None:
    """WordPress asks for a name in the midst of a page, and cannot be told to wait less than its resolver does."""
    told = printed(cluster.core, NAMESPACE, replicas, ["cat", "/etc/resolv.conf"])
    none_of(
        {
            name: unless(
                0 < (found_s := gives_up_after_s(text)) < PAGE_PATIENCE_S,
                f"expected names to be given up within {PAGE_PATIENCE_S:g} s, found {found_s} s",
            )
            for name, text in told.items()
        }
    )


@then("the site's claim is bound to the file server's export")
def claim_is_bound(cluster: Cluster, environment: Environment) -> None:
    """By the volume that the claim is bound to."""
    claim = cluster.core.read_namespaced_persistent_volume_claim(CLAIM, NAMESPACE, _request_timeout=REQUEST_TIMEOUT_S)
    found = (claim.status.phase, claim.spec.volume_name)
    assert found == ("Bound", VOLUME), f"expected {CLAIM} bound to {VOLUME}, found {found}"
    nfs = cluster.core.read_persistent_volume(VOLUME, _request_timeout=REQUEST_TIMEOUT_S).spec.nfs
    server = environment.with_role(Role.NFS)[0]
    addresses = {str(address) for address in server.addresses.values()} | {server.name}
    assert nfs is not None, f"expected {VOLUME} on NFS, found another kind of volume"
    told = f"{nfs.server}:{nfs.path}"
    assert nfs.server in addresses, f"expected {VOLUME} on {server.name}, found {told}"
    assert nfs.path == environment.nfs.export, f"expected the export {environment.nfs.export}, found {told}"


@then("every replica has its files there")
def replicas_mount_it(cluster: Cluster, environment: Environment, replicas: tuple[Pod, ...]) -> None:
    """By each replica's own list of mounts: a folder of the node would look the same from outside."""
    complaints = {}
    for name, text in printed(cluster.core, NAMESPACE, replicas, ["cat", "/proc/mounts"]).items():
        rows = map(str.split, text.splitlines())
        mount = next((row for row in rows if row[1] == FILES), ["nothing", "", "none"])
        right = mount[2] in MOUNT_TYPES and mount[0].endswith(f":{environment.nfs.export}")
        complaints[name] = unless(right, f"expected its files by NFS, found {mount[0]} of type {mount[2]}")
    none_of(complaints)


@then("every replica writes there as the site's own user")
def replicas_write(cluster: Cluster, environment: Environment, replicas: tuple[Pod, ...]) -> None:
    """As the web server does when somebody uploads."""
    write = f"f=$(mktemp {FILES}/wp-content/.haproof-XXXXXX) && echo written > $f && cat $f; rm -f $f"
    script = f"setpriv --reuid=33 --regid=33 --clear-groups sh -c {shlex.quote(write)} 2>&1"
    told = printed(cluster.core, NAMESPACE, replicas, ["sh", "-c", script])
    none_of({name: unless(text == "written\n", f"expected to write, found {text}") for name, text in told.items()})


@then("the claim's volume is mounted so that a server that is away is waited for")
def hard_mount(cluster: Cluster) -> None:
    """A soft mount gives up after a while, and what was being written is lost; hard is what nfs(5) does by default."""
    volume = cluster.core.read_persistent_volume(VOLUME, _request_timeout=REQUEST_TIMEOUT_S)
    options = {option for words in volume.spec.mount_options or [] for option in words.split(",")}
    given_up = options & {"soft", "softerr", "softreval"}
    assert not given_up, f"expected {VOLUME} mounted hard, found {', '.join(sorted(options))}"


def await_replicas(
    cluster: Cluster, count: int, gone: frozenset[str] = frozenset(), timeout_s: float = REPLICAS_TIMEOUT_S
) -> tuple[Pod, ...]:
    """`count` Ready replicas, none of them one of `gone`; raises DeadlineExceeded."""

    def ready() -> tuple[Pod, ...]:
        try:
            found = ready_replicas(cluster)
        except (ApiException, *UNAVAILABLE) as error:
            raise NotYet(f"the API does not answer: {type(error).__name__}") from error
        names = {replica.name for replica in found}
        if len(found) != count or names & gone:
            raise NotYet(f"Ready: {', '.join(sorted(names)) or 'none'}")
        return found

    return poll(f"{count} replicas of the site", ready, timeout_s=timeout_s, interval_s=1)


@when("all replicas are deleted and others have taken their place", target_fixture="replicas")
def delete_replicas(cluster: Cluster, replicas: tuple[Pod, ...]) -> tuple[Pod, ...]:
    """All at once."""
    for replica in replicas:
        cluster.core.delete_namespaced_pod(
            replica.name, NAMESPACE, grace_period_seconds=0, _request_timeout=REQUEST_TIMEOUT_S
        )
    return await_replicas(cluster, len(replicas), frozenset(replica.name for replica in replicas))


@then("the front page shows the post and every replica serves the image")
def content_is_there(editor: Editor, environment: Environment, replicas: tuple[Pod, ...], entrances: Entrances) -> None:
    """As before."""
    try:
        poll("the virtual address", lambda: answers(environment), timeout_s=SEEN_TIMEOUT_S, interval_s=0.5)
    except DeadlineExceeded as error:
        raise AssertionError(f"expected the virtual address to answer, found {error.last_state}") from error
    front_page_shows(editor, environment, replicas, entrances)
    every_replica_serves(editor, replicas, entrances)


def answers(environment: Environment) -> bool:
    """Whether the virtual address answers; raises NotYet with what it says instead."""
    try:
        page_of(at_vip(environment))
    except (requests.RequestException, AssertionError) as error:
        raise NotYet(str(error)) from error
    return True


def scale(cluster: Cluster, count: int) -> None:
    """Ask for so many replicas; raises ApiException."""
    cluster.apps.patch_namespaced_deployment_scale(
        NAME, NAMESPACE, {"spec": {"replicas": count}}, _request_timeout=REQUEST_TIMEOUT_S
    )


@pytest.fixture
def scaled(cluster: Cluster, environment: Environment) -> Iterator[None]:
    """Puts the declared number of replicas back."""
    yield
    scale(cluster, environment.wordpress.replicas)
    await_replicas(cluster, environment.wordpress.replicas)


@when("one replica more is asked for than declared", target_fixture="more")
def scale_out(scaled: None, cluster: Cluster, environment: Environment) -> tuple[Pod, ...]:
    """All of them, once they are Ready."""
    count = environment.wordpress.replicas + 1
    scale(cluster, count)
    try:
        return await_replicas(cluster, count, timeout_s=ONE_MORE_TIMEOUT_S)
    except DeadlineExceeded as error:
        raise AssertionError(f"expected {count} replicas Ready, found {error.last_state}") from error


@then("it becomes Ready and answers with the same site")
def one_more_answers(more: tuple[Pod, ...], environment: Environment, entrances: Entrances) -> None:
    """Every replica's front page has the site's title."""
    title = environment.wordpress.title
    none_of(
        {
            replica.name: unless(title in page_of(entrances.at(replica)), f"expected the site “{title}”")
            for replica in more
        }
    )


@then("the replicas are as declared again afterwards")
def as_declared(cluster: Cluster, environment: Environment) -> None:
    """Scaled in again, without help but the number."""
    scale(cluster, environment.wordpress.replicas)
    try:
        await_replicas(cluster, environment.wordpress.replicas)
    except DeadlineExceeded as error:
        raise AssertionError(f"expected the declared replicas, found {error.last_state}") from error


def readable(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Everything about the site that people without access to Secrets can read, each with what it is."""
    for pod in site_pods(cluster):
        yield f"Pod {pod.metadata.name}", str(pod)
        yield f"log of {pod.metadata.name}", str(cluster.core.read_namespaced_pod_log(pod.metadata.name, NAMESPACE))
        # After a power cut the kubelet may know of a restart and of nothing before it: then nobody can read that.
        if any(status.last_state.terminated for status in pod.status.container_statuses or []):
            before = cluster.core.read_namespaced_pod_log(pod.metadata.name, NAMESPACE, previous=True)
            yield f"log of {pod.metadata.name} before its restart", str(before)
    yield f"Deployment {NAME}", str(cluster.apps.read_namespaced_deployment(NAME, NAMESPACE))
    yield f"Service {NAME}", str(cluster.core.read_namespaced_service(NAME, NAMESPACE))
    yield f"PersistentVolume {VOLUME}", str(cluster.core.read_persistent_volume(VOLUME))
    yield f"PersistentVolumeClaim {CLAIM}", str(cluster.core.read_namespaced_persistent_volume_claim(CLAIM, NAMESPACE))
    for revision in cluster.apps.list_namespaced_replica_set(NAMESPACE, label_selector=SELECTOR).items:
        yield f"ReplicaSet {revision.metadata.name}", str(revision)
    for values in cluster.core.list_namespaced_config_map(NAMESPACE).items:
        yield f"ConfigMap {values.metadata.name}", str(values)
    for event in cluster.core.list_namespaced_event(NAMESPACE).items:
        yield f"event {event.metadata.name}", str(event.message)


@then("no password of the site is in a Pod's specification, a manifest or a log")
def no_password(cluster: Cluster, environment: Environment) -> None:
    """As it is, or in base64."""
    site = environment.wordpress
    passwords = {"database's": site.database_password.reveal(), "administrator's": site.admin_password.reveal()}
    forms = {whose: (password, base64.b64encode(password.encode()).decode()) for whose, password in passwords.items()}
    none_of(
        {
            what: [
                f"expected no password in it, found the {whose}"
                for whose, spelled in forms.items()
                if any(form in text for form in spelled)
            ]
            for what, text in readable(cluster)
        }
    )
