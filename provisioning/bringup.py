"""How a target comes to be, as a contents page: the actions, in their order."""

from environments.model import Environment, Role
from provisioning.account import Account
from provisioning.action import Action, ActionFailed
from provisioning.addons import (
    ApiAnswers,
    ClusterReady,
    DnsSpread,
    ManifestApplied,
    PoolDeclared,
    StrictArp,
    WorkersLabelled,
)
from provisioning.cluster import Cluster
from provisioning.database import Database, DatabaseDeclared
from provisioning.edge import AccessDeclared, ConnectorRunning, HostAnswers, TunnelDeclared
from provisioning.hypervisor import Hypervisor, HypervisorError
from provisioning.kubeadm import ControlPlaneBegun, Kubeadm, NodesJoined, Progress
from provisioning.kubelet import KubeletsConfigured
from provisioning.machines import (
    Machines,
    MachinesCloned,
    MachinesEntered,
    MachinesRunning,
    MachinesShaped,
    TemplateMade,
)
from provisioning.ndb import Ndb, NdbStarted
from provisioning.preparation import NodesPrepared
from provisioning.public import PublicHost
from provisioning.site import SiteDeclared, SiteInstalled, SiteRunning
from provisioning.ssh import Shell
from provisioning.state import State
from provisioning.tunnel import Connector


class Begun:
    """Whether there is a cluster to look into; asked until it is so, then remembered."""

    def __init__(self, kubeadm: Kubeadm) -> None:
        self._kubeadm = kubeadm
        self._so = False

    def __call__(self) -> bool:
        """True once `kubeadm init` has run to its end."""
        self._so = self._so or self._kubeadm.progress(self._kubeadm.first) is Progress.FINISHED
        return self._so


def actions(environment: Environment, state: State) -> list[Action]:
    """Every action of the bring-up; reads the hypervisor once, to know what a plan can look into.

    Raises ActionFailed when the hypervisor cannot be used.
    """
    try:
        hypervisor = Hypervisor(environment.hypervisor)
        vms = hypervisor.vms()
    except HypervisorError as error:
        raise ActionFailed(str(error)) from error
    shell = Shell(environment, state)
    built = environment.machines
    machines = Machines(environment, built, hypervisor, shell)
    exist = all(vms[m.vmid].status == "running" if m.vmid in vms else False for m in built)
    kubeadm, cluster = Kubeadm(environment, shell), Cluster(environment, shell)
    begun, database, account = Begun(kubeadm), Database(environment, shell), Account(environment)
    return [
        TemplateMade(machines),
        MachinesCloned(machines),
        MachinesShaped(machines),
        MachinesRunning(machines),
        MachinesEntered(machines),
        NodesPrepared(environment, built, shell, exist),
        NdbStarted(Ndb(environment, shell), exist),
        DatabaseDeclared(database, exist),
        ControlPlaneBegun(kubeadm),
        ApiAnswers(cluster, begun),
        ManifestApplied(cluster, environment.kubernetes.cni.manifest, "pod network", begun),
        StrictArp(cluster, begun),
        KubeletsConfigured(cluster, kubeadm, begun),
        NodesJoined(kubeadm, Role.CONTROL_PLANE, "control planes joined"),
        NodesJoined(kubeadm, Role.WORKER, "workers joined"),
        WorkersLabelled(cluster, begun),
        DnsSpread(cluster, begun),
        ManifestApplied(cluster, environment.metallb.manifest, "MetalLB", begun),
        PoolDeclared(cluster, begun),
        ClusterReady(cluster, begun),
        SiteDeclared(cluster, database, begun),
        SiteRunning(cluster, begun),
        SiteInstalled(cluster, database, begun),
        AccessDeclared(account, state),
        TunnelDeclared(account),
        ConnectorRunning(account, Connector(environment, shell), exist),
        HostAnswers(PublicHost.of(environment.edge), begun),
    ]
