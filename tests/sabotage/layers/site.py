"""Lies about the site's replicas: how many, where, with which files and which secrets."""

import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from provisioning.site import CLAIM, NAME, NAMESPACE, RESOLVER, SELECTOR, VOLUME, documents
from tests.sabotage.layers.cluster import kubectl
from tests.sabotage.layers.nodes import worker
from tests.sabotage.lie import Lie, Tell, on, together
from tests.sabotage.stage import Stage

LAYER = "site"
HERE = f"-n {NAMESPACE}"
ROLLED = f"kubectl {HERE} rollout status deployment/{NAME} --timeout=200s >/dev/null"
UPLOADS = "/var/www/html/wp-content/uploads"
# WordPress takes its keys from the environment where it finds them there.
KEYS = [
    f"WORDPRESS_{n}"
    for n in ("AUTH_KEY", "SECURE_AUTH_KEY", "LOGGED_IN_KEY", "AUTH_SALT", "SECURE_AUTH_SALT", "LOGGED_IN_SALT")
]
# Each another one: keys that are alike WordPress passes over (wp_salt).
OWN_KEYS = ", ".join(
    (
        '{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}',
        *(f'{{"name": "{key}", "value": "{key} of $(POD)"}}' for key in KEYS),
    )
)


def all_at_once(change: str) -> str:
    """A change by kubectl that makes every replica anew, all at once, and then lets the Deployment go on as declared.

    One after another, as it has them, takes twice as long.
    """
    away = '{"spec": {"strategy": {"rollingUpdate": {"maxUnavailable": @}}}}'
    where = f"{HERE} patch deployment {NAME} -p"
    whole, declared = (f"{where} '{away.replace('@', value)}'" for value in ('"100%"', "null"))
    return f'{whole} && kubectl {change} && {ROLLED} || failed=1; kubectl {declared} && test -z "${{failed:-}}"'


RESTARTED = all_at_once(f"{HERE} rollout restart deployment/{NAME}")


def rolled(patch: str, undo: str) -> Tell:
    """The Deployment's template is another one, and every replica of it; both are strategic merges."""
    where = f"{HERE} patch deployment {NAME} --type=strategic -p"
    return kubectl(all_at_once(f"{where} '{patch}'"), all_at_once(f"{where} '{undo}'"))


def of_pods(pod: str, undo: str) -> Tell:
    """Something else about the Pod's template."""
    return rolled(f'{{"spec": {{"template": {{"spec": {pod}}}}}}}', f'{{"spec": {{"template": {{"spec": {undo}}}}}}}')


def inside(tell: str, undo: str) -> Tell:
    """In the mounts of the replica on the last worker, which nobody else sees; `undo` may find it gone.

    The web server begins anew (gracefully): it keeps the programs that it has read.
    """
    enter = (
        "pid=$(crictl inspect -o go-template --template '{{.info.pid}}' "
        f"$(crictl ps -q --name '^{NAME}$' | head -1)); nsenter -t $pid -m --"
    )
    return on(worker, f"{enter} sh -c '{tell}'; kill -USR1 $pid", f"{enter} sh -c '{undo}' || true")


@contextmanager
def password_in_annotation(stage: Stage) -> Iterator[None]:
    """As kubectl's own annotation of what was applied last would hold it."""
    password = stage.environment.wordpress.database_password.reveal()
    body = {"metadata": {"annotations": {"last-applied": f"WORDPRESS_DB_PASSWORD={password}"}}}
    try:
        stage.cluster.apps.patch_namespaced_deployment(NAME, NAMESPACE, body)
        yield
    finally:
        # Its ReplicaSets have it as well, and keep it.
        for what in (f"deployment {NAME}", f"replicaset -l {SELECTOR}"):
            stage.kubectl(f"{HERE} annotate {what} last-applied-")


@contextmanager
def password_in_log(stage: Stage) -> Iterator[None]:
    """A replica says it aloud; it takes the log with it when it goes."""
    password = stage.environment.wordpress.database_password.reveal()
    machine = worker(stage)
    pod = stage.kubectl(f"{HERE} get pods -l {SELECTOR} --field-selector spec.nodeName={machine.name} -o name").split()[
        0
    ]
    try:
        stage.kubectl(f"{HERE} exec -i {pod} -- sh -c 'cat > /proc/1/fd/1'", stdin=f"connecting with {password}\n")
        yield
    finally:
        stage.kubectl(f"{HERE} delete {pod} && {ROLLED}")


@contextmanager
def on_the_node(stage: Stage) -> Iterator[None]:
    """The claim is bound to a folder of whichever node the replica is on. No replica runs meanwhile."""
    volume = (
        f'{{"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {{"name": "{VOLUME}"}}, "spec": {{'
        '"storageClassName": "manual", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], '
        '"hostPath": {"path": "/var/lib/sabotage"}}}'
    )
    delete = "delete --ignore-not-found --timeout=60s"
    gone = f"{delete} pvc {CLAIM} {HERE}; kubectl {delete} pv {VOLUME}"
    kept = "-o json > /run/sabotage-{}.json"
    # What the API fills in binds a volume to the claim that was there before.
    clean = (
        'for f in pv pvc; do python3 -c \'import json, sys; o = json.load(open(sys.argv[1])); o.pop("status"); '
        'm = o["metadata"]; [m.pop(k, None) for k in ("uid", "resourceVersion", "creationTimestamp", "finalizers", '
        '"managedFields")]; o["spec"].pop("claimRef", None); json.dump(o, open(sys.argv[1], "w"))\' '
        "/run/sabotage-$f.json; done"
    )
    stage.kubectl(f"get pv {VOLUME} {kept.format('pv')}; kubectl {HERE} get pvc {CLAIM} {kept.format('pvc')}; {clean}")
    try:
        stage.kubectl(
            f"{HERE} scale deployment {NAME} --replicas=0 && "
            f"kubectl {HERE} wait pod -l {SELECTOR} --for=delete --timeout=90s"
        )
        stage.kubectl(f"{gone}; kubectl create -f - <<'END'\n{volume}\nEND\nkubectl create -f /run/sabotage-pvc.json")
        stage.kubectl(f"{HERE} wait pvc {CLAIM} --for=jsonpath={{.status.phase}}=Bound --timeout=60s")
        yield
    finally:
        try:
            stage.kubectl(f"{gone}; kubectl create -f /run/sabotage-pv.json; kubectl create -f /run/sabotage-pvc.json")
        finally:
            replicas = stage.environment.wordpress.replicas
            stage.kubectl(f"{HERE} scale deployment {NAME} --replicas={replicas} && {ROLLED}")


@contextmanager
def on_one_worker(stage: Stage) -> Iterator[None]:
    """All replicas are where one of them was."""
    where = f'"nodeSelector": {{"kubernetes.io/hostname": "{worker(stage).name}"}}'
    apart = json.dumps(
        documents(stage.environment, "", "")[-1]["spec"]["template"]["spec"]["topologySpreadConstraints"]
    )
    with of_pods(
        f'{{{where}, "topologySpreadConstraints": null}}',
        f'{{"nodeSelector": null, "topologySpreadConstraints": {apart}}}',
    )(stage):
        yield


def mounted(*options: str) -> Tell:
    """The volume is to be mounted otherwise, by replicas that start from now on."""
    declared = ("hard", "nfsvers=3")

    def patch(words: Sequence[str]) -> str:
        return f"patch pv {VOLUME} --type=merge -p '{json.dumps({'spec': {'mountOptions': list(words)}})}'"

    return kubectl(patch((*options, "nfsvers=3")), patch(declared))


@contextmanager
def restarted(stage: Stage) -> Iterator[None]:
    """Every replica has started anew, with what was told before."""
    stage.kubectl(RESTARTED)
    yield


@contextmanager
def restarted_afterwards(stage: Stage) -> Iterator[None]:
    """Every replica starts anew when what was told after this is taken back."""
    try:
        yield
    finally:
        stage.kubectl(RESTARTED)


def plugged(plugin: str) -> Tell:
    """Every page runs this, in which `@@` is the virtual address. Told by a replica: the server has names in memory."""

    @contextmanager
    def told(stage: Stage) -> Iterator[None]:
        folder, within = "/var/www/html/wp-content/mu-plugins", f"{HERE} exec -i deployment/{NAME} -- sh -c"
        words = "<?php " + plugin.replace("@@", str(stage.environment.wordpress.vip))
        try:
            stage.kubectl(f"{within} 'mkdir -p {folder} && cat > {folder}/sabotage.php'", stdin=words)
            yield
        finally:
            stage.kubectl(f"{within} 'rm -rf {folder}'")

    # Workers remember for a while what is in a folder.
    return together(restarted_afterwards, told)


EMPTY_DIR = (
    '{"volumes": [{"name": "own", "emptyDir": {}}], "containers": [{"name": "wordpress", "volumeMounts": '
    f'[{{"name": "own", "mountPath": "{UPLOADS}"}}]}}]}}'
)
NO_EMPTY_DIR = (
    '{"volumes": [{"name": "own", "$patch": "delete"}], "containers": [{"name": "wordpress", "volumeMounts": '
    f'[{{"mountPath": "{UPLOADS}", "$patch": "delete"}}]}}]}}'
)
NO_KEYS = ", ".join(f'{{"name": "{key}", "$patch": "delete"}}' for key in ("POD", *KEYS))
# As a cache in front of it would: who writes is let through, who reads gets what was there once.
CACHED = base64.b64encode(
    b"""<?php
if ($_SERVER['REQUEST_METHOD'] === 'GET' && $_SERVER['REQUEST_URI'] === '/') { echo 'an old page'; exit; }
define('WP_USE_THEMES', true);
require '/var/www/html/wp-blog-header.php';
"""
).decode()
LIES = (
    Lie(
        "two-replicas",
        LAYER,
        ("P3",),
        "expected 3 replicas Ready",
        kubectl(
            f"{HERE} scale deployment {NAME} --replicas=2 && {ROLLED}",
            f"{HERE} scale deployment {NAME} --replicas=3 && {ROLLED}",
        ),
        scenarios=("Every replica is Ready, each on a worker of its own",),
    ),
    Lie(
        "all-replicas-on-one-worker",
        LAYER,
        ("P3",),
        "expected at most 1 on a worker",
        on_one_worker,
        scenarios=("Every replica is Ready, each on a worker of its own",),
    ),
    Lie(
        "resolver-as-it-comes",
        LAYER,
        ("P3",),
        "expected names to be given up within 10 s, found 20 s",
        of_pods('{"dnsConfig": null}', json.dumps({"dnsConfig": RESOLVER})),
        scenarios=("A name that nobody answers holds no page up for long",),
    ),
    Lie(
        "stale-files-on-one-replica",
        LAYER,
        ("P7",),
        "expected .* as uploaded, found status (301|404)",
        inside(f"mkdir -p {UPLOADS} && mount -t tmpfs sabotage {UPLOADS}", f"umount {UPLOADS}"),
        scenarios=("An image that is uploaded through the virtual address is on every replica",),
    ),
    Lie(
        "cached-page-on-one-replica",
        LAYER,
        ("P4", "P7"),
        "on the front page, and it is not there",
        together(
            restarted_afterwards,
            inside(
                f"echo {CACHED} | base64 -d > /dev/shm/index.php && "
                "mount --bind /dev/shm/index.php /var/www/html/index.php",
                "umount -l /var/www/html/index.php",
            ),
        ),
        scenarios=("A post that is published through the virtual address is there for everybody",),
    ),
    Lie(
        "uploads-on-the-pods-disk",
        LAYER,
        ("P7",),
        "expected .* as uploaded",
        of_pods(EMPTY_DIR, NO_EMPTY_DIR),
        scenarios=(
            "An image that is uploaded through the virtual address is on every replica",
            "All replicas are deleted",
        ),
        may=("P3",),
    ),
    Lie(
        "keys-of-each-pod",
        LAYER,
        ("P3",),
        "to be valid here, and it is not",
        of_pods(
            f'{{"containers": [{{"name": "wordpress", "env": [{OWN_KEYS}]}}]}}',
            f'{{"containers": [{{"name": "wordpress", "env": [{NO_KEYS}]}}]}}',
        ),
        scenarios=("A login on one replica is valid on all",),
        may=("P4", "P7"),  # whose scenarios log in, and are answered by another replica next
    ),
    Lie(
        "soft-mount",
        LAYER,
        ("P7",),
        "expected wp-pv mounted hard, found .*soft",
        mounted("soft"),
        scenarios=("Replicas may write, and wait for their files without end",),
    ),
    Lie(
        "claim-on-the-nodes-disk",
        LAYER,
        ("P7",),
        "on NFS, found another kind of volume",
        on_the_node,
        scenarios=("The site's files are on the file server",),
        may=("P3", "P4", "P9", "P10"),
    ),
    Lie(
        "password-in-a-manifest", LAYER, ("P11",), "Deployment wordpress: expected no password", password_in_annotation
    ),
    Lie("password-in-a-log", LAYER, ("P11",), "log of .*: expected no password", password_in_log),
    Lie(
        "no-room-for-one-more",
        LAYER,
        ("P13",),
        "expected 4 replicas Ready",
        kubectl(f"{HERE} create quota sabotage --hard=pods=3", f"{HERE} delete quota sabotage --ignore-not-found"),
        scenarios=("One replica more",),
    ),
    Lie(
        "soft-mounts-in-force",
        "limits",
        ("P7",),
        "expected the upload to wait, found it ended|expected every visit",
        together(restarted_afterwards, mounted("soft", "timeo=10", "retrans=1"), restarted),
        scenarios=("Losing the file server makes uploads wait and fails none",),
    ),
    Lie(
        "address-told-by-pages",
        "edge",
        ("P9",),
        "expected no address, found the virtual address",
        plugged('header("X-Served-By: @@");'),
        scenarios=("No public answer tells an address of the origin",),
    ),
    Lie(
        "administration-closed-inside",
        "edge",
        ("P10",),
        "expected the site's login",
        plugged(
            'if ($_SERVER["HTTP_HOST"] === "@@" && basename($_SERVER["SCRIPT_NAME"]) === "wp-login.php") '
            "{ http_response_code(403); exit; }"
        ),
        scenarios=("Inside, the virtual address serves the administration without Access",),
        may=("P3", "P4", "P7"),  # whose scenarios log in there
    ),
)
