"""Lies about Kubernetes itself: its nodes, its Pods' network, what nodes join by."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from chaos import scripts
from environments.model import Machine, Role
from provisioning.addons import DNS_LABEL, METALLB_NAMESPACE, DnsSpread, ManifestApplied
from provisioning.poll import poll
from steps.cluster import ETCDCTL, nodes_not_ready
from tests.sabotage.layers.nodes import worker
from tests.sabotage.lie import Lie, Pick, Tell, on
from tests.sabotage.stage import KUBECTL, Stage

LAYER = "cluster"
MISSED_TIMEOUT_S = 120
TOKEN, SYSTEM = "bootstrap-token-sabota", "-n kube-system"
IN_ETCD = "exec -n kube-system etcd-{pod} -- " + " ".join(ETCDCTL) + " "


def first_master(stage: Stage) -> Machine:
    """Where the cluster's administrator is."""
    return stage.with_role(Role.CONTROL_PLANE)


def second_master(stage: Stage) -> Machine:
    """The one that is not the API's endpoint."""
    return stage.with_role(Role.CONTROL_PLANE, 1)


def kubectl(tell: str, undo: str) -> Tell:
    """Told and taken back by kubectl."""
    return on(first_master, f"{KUBECTL}kubectl {tell}", f"{KUBECTL}kubectl {undo}")


def of_worker(tell: str, undo: str) -> Tell:
    """As `kubectl`, with the last worker's name for `@`."""

    @contextmanager
    def told(stage: Stage) -> Iterator[None]:
        name = worker(stage).name
        with kubectl(tell.replace("@", name), undo.replace("@", name))(stage):
            yield

    return told


def dropped(rule: str) -> Tell:
    """The last worker drops what is forwarded to or from its Pods and fits `rule`."""
    return on(
        worker,
        "nft add table ip sabotage; nft 'add chain ip sabotage way { type filter hook forward priority -10; }'; "
        f"nft add rule ip sabotage way '{rule} drop'",
        "nft delete table ip sabotage 2>/dev/null || true",
    )


@contextmanager
def pods_cut_off(stage: Stage) -> Iterator[None]:
    """Nothing that is for a Pod gets through the last worker."""
    with dropped(f"ip daddr {stage.environment.kubernetes.pod_subnet}")(stage):
        yield


def silent(pick: Pick) -> Tell:
    """A node's kubelet says nothing, until Kubernetes has noticed."""

    @contextmanager
    def told(stage: Stage) -> Iterator[None]:
        name = pick(stage).name
        with on(pick, "systemctl stop kubelet", "systemctl start kubelet")(stage):
            poll(
                f"{name} is missed",
                lambda: bool(nodes_not_ready(stage.cluster, {name})),
                timeout_s=MISSED_TIMEOUT_S,
                interval_s=1,
            )
            yield

    return told


@contextmanager
def all_names_on_one(stage: Stage) -> Iterator[None]:
    """As kubeadm leaves it: CoreDNS was made while there was one node. Parted again by the build's own action."""
    others = " ".join(m.name for m in stage.environment.cluster_machines if m != first_master(stage))
    try:
        stage.kubectl(f"cordon {others}")
        stage.kubectl(f"{SYSTEM} delete pod -l {DNS_LABEL}")
        stage.kubectl(f"{SYSTEM} rollout status deployment coredns --timeout=60s")
        yield
    finally:
        stage.kubectl(f"uncordon {others}")
        DnsSpread(stage.cluster, lambda: True).apply()


@contextmanager
def no_controller(stage: Stage) -> Iterator[None]:
    """Nobody gives out virtual addresses; put right by the build's own action."""
    try:
        stage.kubectl(f"-n {METALLB_NAMESPACE} delete deployment controller")
        yield
    finally:
        ManifestApplied(stage.cluster, stage.environment.metallb.manifest, "MetalLB", lambda: True).apply()


def without(kept: str) -> Tell:
    """The cluster lacks an object of its own, which is put back as it was."""
    file, clean = "/run/sabotage.yaml", "sed -i '/^  \\(uid\\|resourceVersion\\): /d'"
    return on(
        first_master,
        # What is not kept is not deleted: a pipe would hide that nothing was read.
        f"{KUBECTL}kubectl {SYSTEM} get {kept} -o yaml > {file}; {clean} {file}; kubectl {SYSTEM} delete {kept}",
        f"{KUBECTL}test ! -s {file} || kubectl create -f {file}; rm -f {file}",
    )


@contextmanager
def one_member(stage: Stage) -> Iterator[None]:
    """The second master's etcd is no member any more; what it holds is old from then on."""
    told = json.loads(stage.kubectl(IN_ETCD.format(pod=first_master(stage).name) + "member list"))
    number = next(m["ID"] for m in told["members"] if m["name"] == second_master(stage).name)
    stage.kubectl(IN_ETCD.format(pod=first_master(stage).name) + f"member remove {number:x}")
    yield


LIES = (
    Lie(
        "worker-without-label",
        LAYER,
        ("P2",),
        'expected node-role.kubernetes.io/worker=""',
        of_worker("label node @ node-role.kubernetes.io/worker-", "label node @ node-role.kubernetes.io/worker="),
        scenarios=("Every worker is Ready and labelled as one",),
    ),
    Lie(
        "cordoned-worker",
        LAYER,
        ("P2",),
        "expected it to take new Pods",
        of_worker("cordon @", "uncordon @"),
        scenarios=("Every worker is Ready and labelled as one",),
    ),
    Lie(
        "pods-of-one-worker-cut-off",
        LAYER,
        ("P2",),
        "to answer, heard",
        pods_cut_off,
        scenarios=("Pods on all workers reach each other",),
        may=("P3", "P4", "P7", "P9", "P10"),
    ),
    Lie(
        "replicas-of-one-worker-cut-off",
        "load_balancer",
        ("P4",),
        "expected answers of|expected an address for the Service",
        pods_cut_off,
        scenarios=("Traffic reaches every replica",),
        may=("P2", "P3", "P7", "P9", "P10"),
    ),
    Lie(
        "no-dns-on-one-worker",
        LAYER,
        ("P2",),
        "expected 10.96.0.1, heard",
        dropped("meta l4proto { tcp, udp } th dport 53"),
        scenarios=("Pods on all workers resolve names of the cluster",),
    ),
    Lie(
        "kube-proxy-not-syncing-on-one-node",
        LAYER,
        ("P2",),
        "expected one of the Pods behind the Service to answer",
        on(worker, scripts.signalled("kube-proxy", "STOP"), scripts.signalled("kube-proxy", "CONT")),
        scenarios=("Pods on all workers reach a Service",),
        may=("P4",),
    ),
    Lie(
        "workload-short-of-pods",
        LAYER,
        ("P2",),
        "coredns",
        kubectl(
            f"{SYSTEM} patch deployment coredns --type=strategic -p "
            '\'{"spec": {"template": {"spec": {"nodeSelector": {"sabotage": "nowhere"}}}}}\'',
            f"{SYSTEM} patch deployment coredns --type=json -p "
            '\'[{"op": "remove", "path": "/spec/template/spec/nodeSelector/sabotage"}]\'',
        ),
        scenarios=("Every system workload is whole",),
    ),
    Lie(
        "names-of-one-machine",
        LAYER,
        ("P3",),
        "expected CoreDNS on several machines, found it on",
        all_names_on_one,
        scenarios=("The cluster's names outlive any one machine",),
    ),
    Lie(
        "no-load-balancer",
        LAYER,
        ("P2",),
        "expected a workload controller, and there is none",
        no_controller,
        scenarios=("Every system workload is whole",),
        may=("P4",),
    ),
    Lie(
        "worker-not-ready",
        LAYER,
        ("P2",),
        "expected Ready True",
        silent(worker),
        scenarios=("Every worker is Ready and labelled as one",),
        may=("P3", "P12"),  # a kubelet's settings are asked of itself, and its replicas take no visitors
    ),
    Lie(
        "master-not-ready",
        LAYER,
        ("P1",),
        "expected Ready True",
        silent(second_master),
        scenarios=("Every control plane is Ready",),
        may=("P12",),  # a kubelet's settings are asked of itself
    ),
    Lie(
        "nothing-to-join-by",
        LAYER,
        ("P13",),
        "expected srv.* to be built, found: workers joined",
        without("configmap kubeadm-config"),
        scenarios=("One worker more",),
    ),
    Lie(
        "etcd-with-one-member",
        LAYER,
        ("P1",),
        "expected srvk8s-master01, srvk8s-master02, found|expected the API to take no writes",
        one_member,
        scenarios=(
            "Every control plane holds a healthy etcd member",
            "Losing one of two masters stops the Kubernetes API and leaves the site up",
        ),
        may=("P2", "P3", "P4", "P7", "P8", "P13"),  # whoever asks the second master's API is answered from an old state
        rollback=True,
    ),
    Lie(
        "a-token-without-end",
        LAYER,
        ("P8",),
        "it names no end",
        kubectl(
            f"{SYSTEM} create secret generic {TOKEN} --type=bootstrap.kubernetes.io/token "
            "--from-literal=token-id=sabota --from-literal=token-secret=0123456789abcdef "
            "--from-literal=usage-bootstrap-authentication=true",
            f"{SYSTEM} delete secret {TOKEN} --ignore-not-found",
        ),
    ),
    Lie(
        "certificates-left-in-a-secret",
        LAYER,
        ("P8",),
        "expected kubeadm-certs to go with a token that expires",
        kubectl(
            f"{SYSTEM} delete secret kubeadm-certs --ignore-not-found && kubectl "
            f"{SYSTEM} create secret generic kubeadm-certs --from-literal=ca.key=sham",
            f"{SYSTEM} delete secret kubeadm-certs --ignore-not-found",
        ),
    ),
    Lie(
        "another-chart-repository",
        LAYER,
        ("P13",),
        "expected .*bitnami.*, found .*other",
        on(
            first_master,
            "file=$(helm env HELM_REPOSITORY_CONFIG); cp $file /run/sabotage.yaml; "
            "sed -i 's/name: bitnami/name: other/' $file",
            "mv /run/sabotage.yaml $(helm env HELM_REPOSITORY_CONFIG)",
        ),
    ),
)
