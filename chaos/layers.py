"""What each layer of a target is asked: what visitors see is asked from here, the rest on the machine next to it."""

import base64
import json
import shlex
from collections.abc import Iterable
from pathlib import Path

from chaos import probe
from chaos.facts import Live
from chaos.judgement import PAGE_PATIENCE_S
from chaos.ledger import Ledger
from chaos.target import Facts
from chaos.workload import Login, Posts, Rows, Uploads
from chaos.workload import Plan as Workload
from environments.model import Environment, Machine, Role
from provisioning.cluster import REQUEST_TIMEOUT_S, Cluster
from provisioning.database import PORT as SQL_PORT
from provisioning.ndb import Ndb
from provisioning.site import LABELS, VOLUME
from provisioning.ssh import Shell

# PHP and nothing else: a page takes a core for 60 ms, and often asked would be the load that is to be measured. Without
# the database this one answers as ever, so the front page is asked for too, seldom.
PATH, FRONT_PAGE = "/wp-includes/version.php", "/"
API_PORT, NFS_PORT, MANAGEMENT_PORT = 6443, 2049, 1186
PAGE_INTERVAL_S, PAGE_TIMEOUT_S = 1.0, PAGE_PATIENCE_S
INTERVAL_S, SLOW_INTERVAL_S = 0.05, 0.2  # a program on a machine, and the API's writes, cost more than an answer
ROW_INTERVAL_S, POST_INTERVAL_S, UPLOAD_INTERVAL_S = 0.1, 1.5, 2.0
# A browser waits longer than a probe, and a write that waits is no loss.
EDITOR_TIMEOUT_S = 60.0
NOTE = "haproof-drill"  # the ConfigMap that is written to
MOUNTS = f"/var/lib/kubelet/pods/*/volumes/kubernetes.io~nfs/{VOLUME}"
# Each answers a line with a line; bash speaks TCP and UDP itself, so that little is started.
LOOP = """
while read -r _; do
  if told=$(check 2>&1); then echo ok; else echo "${{told:-failed}}" | head -n 1; {otherwise} fi
done
{end}
"""
REPLICA = (
    """
find_address() {{
  local id; id=$(crictl pods -q --state ready {labels} | head -n 1)
  address=$(test -z "$id" || crictl inspectp -o go-template --template '{{{{.status.network.ip}}}}' "$id")
}}
check() {{
  test "$address" || {{ echo 'no replica is ready here'; return 1; }}
  exec 3<>"/dev/tcp/$address/80" || return 1
  printf 'GET {path} HTTP/1.0\\r\\nHost: {host}\\r\\n\\r\\n' >&3
  read -r -t 4 line <&3 || {{ echo 'no answer within 4 s'; return 1; }}
  [[ $line == *' 200 '* ]] || {{ echo "$line"; return 1; }}
}}
find_address
"""
    + LOOP
)
FILES = (
    """
own=.haproof-probe-$HOSTNAME
enter() {{
  set -- {mounts}; cd "$1" 2>/dev/null
}}
check() {{
  enter || {{ echo 'the volume is not mounted here'; return 1; }}
  {check}
}}
"""
    + LOOP
)
READ = "test ! -e .haproof-no-$RANDOM$RANDOM"  # a name that no cache knows: the server is asked
WRITE = "dd if=/dev/urandom of=$own bs=64 count=1 conv=fsync status=none"
# A question for the address of `kube-dns.kube-system.svc.cluster.local` (RFC 1035, section 4.1).
NAMES = (
    """
header='\\x12\\x34\\x01\\0\\0\\x01\\0\\0\\0\\0\\0\\0'
name='\\x08kube-dns\\x0bkube-system\\x03svc\\x07cluster\\x05local\\0'
check() {{
  exec 3<>/dev/udp/{server}/53 || return 1
  printf "$header$name"'\\0\\x01\\0\\x01' >&3
  read -r -t 2 -N 1 _ <&3 || {{ echo 'no answer within 2 s'; return 1; }}
}}
"""
    + LOOP
)


def questions(live: Live, facts: Facts, struck: Iterable[Machine]) -> probe.Plan:
    """All layers; holds secrets. Raises ActionFailed and ApiException.

    What is asked of files and names is asked on a worker that has the files and is not struck; where all are, nobody
    asks.
    """
    environment, shell, cluster = live.session.environment, live.session.shell, live.cluster
    serving = [worker for worker in environment.with_role(Role.WORKER) if (facts.replicas or {}).get(worker.name)]
    spared = [worker for worker in serving if worker not in struck]
    return probe.Plan(
        questions=(
            *visitors(environment),
            *_kubernetes(environment, cluster),
            *_database(environment, live.ndb),
            probe.Port(layer="nfs", host=_address(environment, Role.NFS), port=NFS_PORT),
            *(replica(environment, shell, worker) for worker in serving),
            *(_files_and_names(environment, shell, cluster, spared[0]) if spared else ()),
        )
    )


def visitors(environment: Environment) -> list[probe.Page | probe.PublicPage]:
    """The site at the virtual address and at the public host: a file of PHP's often, its front page seldom."""
    site, edge = environment.wordpress, environment.edge
    inside = probe.Page(layer="vip", host=str(site.vip), port=80, path=PATH, timeout_s=4, interval_s=INTERVAL_S)
    outside = probe.PublicPage(
        layer="public",
        host=str(edge.resolve or edge.public_host),
        port=443,
        name=edge.public_host,
        path=PATH,
        ca=Path(edge.ca).read_text() if edge.ca else "",
        timeout_s=4,
        interval_s=INTERVAL_S,
    )
    slowly = {"path": FRONT_PAGE, "timeout_s": PAGE_TIMEOUT_S, "interval_s": PAGE_INTERVAL_S}
    pages = [
        type(question).model_validate({**question.model_dump(), **slowly, "layer": f"page/{question.layer}"})
        for question in (inside, outside)
    ]
    return [inside, outside, *pages]


def _kubernetes(environment: Environment, cluster: Cluster) -> list[probe.Call]:
    document = cluster.kubeconfig
    user, authority = document["users"][0]["user"], document["clusters"][0]["cluster"]
    path = f"/api/v1/namespaces/default/configmaps/{NOTE}"
    reading = probe.Call(
        layer="api/read",
        host=str(environment.address(environment.machine(environment.kubernetes.control_plane_endpoint))),
        port=API_PORT,
        path=path,
        ca=_text(authority["certificate-authority-data"]),
        certificate=_text(user["client-certificate-data"]),
        key=_text(user["client-key-data"]),
        interval_s=SLOW_INTERVAL_S,
    )
    body = json.dumps({"metadata": {"name": NOTE}, "data": {"at": "@"}})
    return [reading, reading.model_copy(update={"layer": "api/write", "method": "PUT", "body": body})]


def _text(data: str) -> str:
    return base64.b64decode(data).decode()


def _database(environment: Environment, ndb: Ndb) -> list[probe.Row | probe.Member]:
    site = environment.wordpress
    reading = probe.Row(
        layer="sql",
        host=_address(environment, Role.NDB_SQL),
        port=SQL_PORT,
        user=site.database_user,
        password=site.database_password.reveal(),
        database=site.database,
        query="SELECT option_value FROM wp_options WHERE option_id = 1",
        timeout_s=4,
        interval_s=INTERVAL_S,
    )
    members = [
        probe.Member(
            layer=f"ndb/{machine.name}",
            host=_address(environment, Role.NDB_MANAGEMENT),
            port=MANAGEMENT_PORT,
            node_id=ndb.node_id(machine),
            interval_s=SLOW_INTERVAL_S,
        )
        for machine in ndb.data
    ]
    return [reading, *members]


def replica(environment: Environment, shell: Shell, worker: Machine) -> probe.Spoken:
    """The site's replica on a worker, asked on that worker."""
    labels = " ".join(f"--label {key}={value}" for key, value in LABELS.items())
    script = REPLICA.format(
        labels=labels, path=PATH, host=environment.wordpress.vip, otherwise="find_address;", end="true"
    )
    return probe.Spoken(
        layer=f"pod/{worker.name}",
        command=spoken(environment, shell, worker, script),
        interval_s=SLOW_INTERVAL_S,
        timeout_s=5,
    )


def _files_and_names(
    environment: Environment, shell: Shell, cluster: Cluster, worker: Machine
) -> tuple[probe.Spoken, ...]:
    service = cluster.core.read_namespaced_service("kube-dns", "kube-system", _request_timeout=REQUEST_TIMEOUT_S)
    scripts = {
        "nfs/read": FILES.format(mounts=MOUNTS, check=READ, otherwise="", end="true"),
        "nfs/write": FILES.format(mounts=MOUNTS, check=WRITE, otherwise="", end="enter && rm -f $own"),
        "dns": NAMES.format(server=service.spec.cluster_ip, otherwise="", end="true"),
    }
    return tuple(
        probe.Spoken(
            layer=layer,
            command=spoken(environment, shell, worker, script),
            interval_s=SLOW_INTERVAL_S,
            timeout_s=3,
        )
        for layer, script in scripts.items()
    )


def spoken(environment: Environment, shell: Shell, machine: Machine, script: str) -> tuple[str, ...]:
    """The command that runs a bash script as root on a machine; it notices within seconds that the machine is gone."""
    prompt = {"ConnectTimeout": "2", "ServerAliveInterval": "1", "ServerAliveCountMax": "3"}
    # Nothing secret is said, and the exchange that withstands quantum computers takes a busy machine 0.1 s.
    options = shell.options(**prompt, KexAlgorithms="^curve25519-sha256")
    return ("ssh", *options, str(environment.address(machine)), f"sudo -n bash -c {shlex.quote(script)}")


def writers(environment: Environment, ledger: Ledger) -> Workload:
    """What programs and editors write; holds secrets."""
    site = environment.wordpress
    rows = Rows(
        host=_address(environment, Role.NDB_SQL),
        port=SQL_PORT,
        user=site.database_user,
        password=site.database_password.reveal(),
        database=site.database,
        table=ledger.table,
        interval_s=ROW_INTERVAL_S,
    )
    return Workload(
        editor=Login(url=f"http://{site.vip}", user=site.admin_user, password=site.admin_password.reveal()),
        writers=(
            rows,
            Posts(mark=ledger.mark, interval_s=POST_INTERVAL_S, timeout_s=EDITOR_TIMEOUT_S),
            Uploads(mark=ledger.mark, interval_s=UPLOAD_INTERVAL_S, timeout_s=EDITOR_TIMEOUT_S),
        ),
    )


def _address(environment: Environment, role: Role) -> str:
    worker = environment.with_role(Role.WORKER)[0]
    return str(environment.reached_from(worker, environment.with_role(role)[0]))
