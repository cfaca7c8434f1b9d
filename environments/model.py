"""The description of a target: what one environment file may say, as frozen models.

Sizes carry their unit in the name. Everything that can be judged from one value alone is judged here;
what needs two values (overlaps, references) is judged in `environments.faults`.
"""

from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, HttpUrl, JsonValue, PlainSerializer, field_validator

from environments.secret import SecretRef

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Email = Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$")]
Url = Annotated[HttpUrl, PlainSerializer(str)]


class AddressRange(BaseModel):
    """`FIRST-LAST`, both included."""

    model_config = ConfigDict(frozen=True)
    first: IPv4Address
    last: IPv4Address

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def __contains__(self, address: IPv4Address) -> bool:
        return self.first <= address <= self.last

    def __len__(self) -> int:
        return int(self.last) - int(self.first) + 1


def _split_range(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    first, dash, last = value.partition("-")
    if not dash:
        raise ValueError("expected FIRST-LAST, two addresses joined by a dash")
    if IPv4Address(first.strip()) > IPv4Address(last.strip()):
        raise ValueError("expected FIRST-LAST with FIRST not above LAST")
    return {"first": first.strip(), "last": last.strip()}


Range = Annotated[AddressRange, BeforeValidator(_split_range)]


class Role(StrEnum):
    """What a machine is for."""

    CONTROL_PLANE = "control-plane"
    WORKER = "worker"
    NDB_MANAGEMENT = "ndb-management"
    NDB_DATA = "ndb-data"
    NDB_SQL = "ndb-sql"
    NFS = "nfs"
    TUNNEL = "tunnel"


class Section(BaseModel):
    """A table of the file: unknown keys are refused, values cannot change afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Template(Section):
    """The machine that the others are cloned from, made from `image_url` when missing."""

    vmid: Annotated[int, Field(ge=100, le=999_999_999)]
    name: Name
    image_url: Url
    image_checksum: Annotated[str, Field(pattern=r"^(sha256|sha512):([0-9a-f]{64}|[0-9a-f]{128})$|^url:https?://.+$")]


class Hypervisor(Section):
    """Where the machines live and how to speak to it."""

    api_url: Url
    node: Annotated[str, Field(min_length=1)]
    token_id: Annotated[str, Field(pattern=r"^[^@!\s]+@[^@!\s]+![^@!\s]+$")]
    token: SecretRef
    ca: Annotated[str | None, Field(description="certificate file that signs the API; system store if absent")] = None
    storage: str
    import_storage: str
    template: Template
    provider: Annotated[
        str | None, Field(description="Python package whose `provider` module brings the hypervisor up")
    ] = None
    provider_options: Annotated[dict[str, str], Field(description="what the provider is told")] = {}


class Ssh(Section):
    """How the runner enters machines: cloud-init gives `user` the public half of `private_key`."""

    user: Name
    private_key: SecretRef

    @field_validator("private_key")
    @classmethod
    def _is_a_file(cls, value: SecretRef) -> SecretRef:
        if value.path is None:
            raise ValueError("expected file:PATH, because ssh reads the key from a file")
        return value


class Network(Section):
    """One segment: a bridge of the hypervisor with its addresses."""

    cidr: IPv4Network
    bridge: str
    gateway: IPv4Address | None = None


class Machine(Section):
    """One virtual machine; `addresses` maps network names to addresses, the first is net0."""

    name: Name
    vmid: Annotated[int, Field(ge=100, le=999_999_999)]
    role: Role
    cores: Annotated[int, Field(ge=1)] = 4
    # Against those of the host's other machines, where processors are short; Proxmox VE's own default is 100.
    cpu_units: Annotated[int, Field(ge=1, le=10_000)] | None = None
    memory_mib: Annotated[int, Field(ge=256)] = 4096
    disk_gib: Annotated[int, Field(ge=2)] = 20
    addresses: Annotated[dict[str, IPv4Address], Field(min_length=1)]

    def __hash__(self) -> int:
        return hash(self.name)  # the addresses, a dict, have none


class AptSource(Section):
    """An apt repository and the key that signs it; a flat one, unless it names a suite and components."""

    url: Url
    key_url: Url
    suite: str = "/"
    components: tuple[str, ...] = ()


class Manifest(Section):
    """A Kubernetes manifest, pinned by its digest."""

    url: Url
    sha256: Sha256


class Cni(Section):
    """The pod network; the document names none, so the file says what was chosen."""

    name: Literal["flannel"]
    version: str
    manifest: Manifest


class Kubernetes(Section):
    """The kubeadm cluster."""

    version: Annotated[str, Field(pattern=r"^1\.\d+$")]
    control_plane_endpoint: Name
    pod_subnet: IPv4Network
    service_subnet: IPv4Network
    packages: AptSource
    registry_mirror: Url | None = None
    ignored_preflight_checks: tuple[str, ...] = ()
    kubelet: Annotated[dict[str, JsonValue], Field(description="more of KubeletConfiguration")] = {}
    cni: Cni


class MetalLb(Section):
    """The load balancer of the cluster."""

    version: str
    manifest: Manifest
    pool: Name
    range: Range
    advertisement: Name


class Ndb(Section):
    """MySQL NDB Cluster."""

    packages: AptSource
    default_storage_engine: Annotated[
        Literal["ndbcluster", "InnoDB"],
        Field(description="of tables that name none, as WordPress's"),
    ]
    replicas: Annotated[int, Field(ge=1, le=4)]
    data_memory_mib: Annotated[int, Field(ge=64)]
    heartbeat_interval_ms: Annotated[int, Field(ge=100)]
    parameters: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Z][A-Za-z]+$")], str], Field(description="more of [ndbd default]")
    ] = {}


class Nfs(Section):
    """The file server's one export."""

    export: Annotated[str, Field(pattern=r"^/")]
    clients: IPv4Network
    root_squash: Annotated[
        bool, Field(description="whether root of a client is nobody here, as where the document's line says nothing")
    ] = True


class WordPress(Section):
    """The site."""

    replicas: Annotated[int, Field(ge=1)]
    image: str
    database: str
    database_user: str
    database_clients: str
    database_password: SecretRef
    vip: IPv4Address
    vip_clients: Annotated[
        tuple[IPv4Network, ...], Field(description="who reaches the VIP; empty: everybody inside, as in the document")
    ] = ()
    title: Annotated[str, Field(min_length=1)]
    admin_user: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@-]{1,60}$")]
    admin_email: Email
    admin_password: SecretRef

    @field_validator("database_clients")
    @classmethod
    def _is_a_network_where_it_has_a_mask(cls, value: str) -> str:
        if "/" in value:
            IPv4Network(value)
        return value


class Helm(Section):
    """The package manager of Kubernetes on the first master: where it comes from, and the charts it knows."""

    packages: AptSource
    repositories: dict[Name, Url]


class Google(Section):
    """Google as a second way to log in: the OAuth client that its console gives.

    Cloudflare tells no secret, so that one that was changed alone is not seen: change the client with it.
    """

    client_id: Annotated[str, Field(min_length=1)]
    client_secret: SecretRef


class Mailbox(Section):
    """Where the letters to an address of ours can be read: `GET URL/ADDRESS` with the bearer token."""

    url: Url
    token: SecretRef
    ages: Annotated[
        bool,
        Field(description="`POST URL/ADDRESS` makes PINs sent there `older_s` seconds older: an emulated service only"),
    ] = False


class Edge(Section):
    """The public side: a tunnel to the VIP, and who may enter the administration."""

    public_host: Annotated[str, Field(pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)+$")]
    account_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    zone_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    api_token: SecretRef
    api_url: Annotated[Url | None, Field(description="of the API, with /client/v4; the service's own if absent")] = None
    ca: Annotated[str | None, Field(description="certificate file that signs API and public host")] = None
    resolve: Annotated[IPv4Address | None, Field(description="of the public hosts, as curl's --resolve")] = None
    proxy: Annotated[Url | None, Field(description="HTTP proxy where visitors are, for a runner inside")] = None
    packages: AptSource
    admin_emails: tuple[Email, ...] = ()
    admin_domains: tuple[Annotated[str, Field(pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)+$")], ...] = ()
    session_duration: Annotated[str, Field(pattern=r"^[1-9]\d*[mh]$")] = "24h"
    google: Google | None = None
    mailbox: Annotated[Mailbox | None, Field(description="without it, no login by PIN can be exercised")] = None


class Chaos(Section):
    """Whether machines of this target may be rebooted, stopped or broken on purpose."""

    allowed: bool = False
    machines_down_max: Annotated[int, Field(ge=0)] = 1
    # Tighter than what follows from the timers: seconds by drill and layer, as `python -m chaos list` names them.
    promises_s: dict[str, dict[str, Annotated[float, Field(ge=0)]]] = {}


class Visit(StrEnum):
    """What somebody comes for; editors log in for the last three. `page` is one page without what belongs to it."""

    PAGE = "page"
    READ = "read"
    SEARCH = "search"
    COMMENT = "comment"
    EDIT = "edit"
    PUBLISH = "publish"
    UPLOAD = "upload"


class Objective(Section):
    """What is good enough: the 95th percentile of all requests, and the share of them that may fail."""

    p95_ms: Annotated[float, Field(gt=0)]
    failed_max: Annotated[float, Field(ge=0, lt=1)] = 0.01


class Load(Section):
    """Who comes to the site in which proportions, how long they look at a page, and what they are to find."""

    objective: Objective | None = None
    weights: Annotated[dict[Visit, Annotated[float, Field(ge=0)]], Field(min_length=1)] = {Visit.READ: 1.0}
    think_s: Annotated[float, Field(ge=0)] = 0.0

    @field_validator("weights")
    @classmethod
    def _sends_somebody(cls, value: dict[Visit, float]) -> dict[Visit, float]:
        if not any(value.values()):
            raise ValueError("expected one weight above 0 at least: with these, nobody comes for anything")
        return value


class Environment(Section):
    """A whole target."""

    name: Name
    hypervisor: Hypervisor
    ssh: Ssh
    networks: Annotated[dict[str, Network], Field(min_length=1)]
    machines: Annotated[tuple[Machine, ...], Field(min_length=1)]
    kubernetes: Kubernetes
    metallb: MetalLb
    ndb: Ndb
    nfs: Nfs
    wordpress: WordPress
    helm: Helm
    edge: Edge
    chaos: Chaos = Chaos()
    load: Load = Load()

    @property
    def stand_ins(self) -> tuple[str, ...]:
        """What is not what it stands for, a sentence each: every certificate says so."""
        found = []
        if self.hypervisor.provider:
            found.append(f"The hypervisor is brought up by “{self.hypervisor.provider}” and stands in for Proxmox VE.")
        if self.edge.api_url:
            found.append("Cloudflare is emulated at edge.api_url: neither it nor cloudflared itself was exercised.")
        return tuple(found)

    @property
    def tag(self) -> str:
        """The tag that every machine of this environment carries on the hypervisor."""
        return f"haproof-{self.name}"

    def with_role(self, *roles: Role) -> tuple[Machine, ...]:
        """Machines of any of `roles`, in the file's order."""
        return tuple(machine for machine in self.machines if machine.role in roles)

    def reached_from(self, machine: Machine, other: Machine) -> IPv4Address:
        """The address that `machine` reaches `other` at: in a network of both, else the other's first one."""
        shared = [address for network, address in other.addresses.items() if network in machine.addresses]
        return shared[0] if shared else self.address(other)

    @property
    def cluster_machines(self) -> tuple[Machine, ...]:
        """The Kubernetes nodes, control planes first."""
        return self.with_role(Role.CONTROL_PLANE) + self.with_role(Role.WORKER)

    def machine(self, name: str) -> Machine:
        """The machine called `name`; raises KeyError."""
        for machine in self.machines:
            if machine.name == name:
                return machine
        raise KeyError(name)

    def address(self, machine: Machine) -> IPv4Address:
        """The address the runner and the other nodes reach `machine` at: its first one."""
        return next(iter(machine.addresses.values()))

    def interfaces(self, machine: Machine) -> tuple[IPv4Interface, ...]:
        """Each address of `machine` with its network's prefix length, net0 first."""
        return tuple(
            IPv4Interface(f"{address}/{self.networks[network].cidr.prefixlen}")
            for network, address in machine.addresses.items()
        )
