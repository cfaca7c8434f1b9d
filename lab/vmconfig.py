"""A VM's configuration as Proxmox VE writes it: property strings in, typed values out, and back.

Pure. Formats follow the PVE 9 API schema (`net[n]`, `ipconfig[n]`, drives, tags); every parser raises ValueError
with a message in PVE's words.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, NetmaskValueError
from urllib.parse import unquote

from lab.driver import GuestSpec, Nic

Value = int | float | str
Config = Mapping[str, Value]

MIB = 1024 * 1024
SIZE_UNITS = {"": 1, "K": 1024, "M": MIB, "G": 1024 * MIB, "T": 1024 * 1024 * MIB}
MAC_PREFIX = "BC:24:11"  # Proxmox Server Solutions' own OUI, PVE's default since 8.1
DEFAULT_MEMORY_MIB = 512
DRIVE_KEY = re.compile(r"ide[0-3]|sata[0-5]|scsi(?:[12]?\d|30)|virtio(?:\d|1[0-5])")
NIC_MODELS = frozenset(
    [
        "e1000",
        "e1000-82540em",
        "e1000-82544gc",
        "e1000-82545em",
        "e1000e",
        "i82551",
        "i82557b",
        "i82559er",
        "ne2k_isa",
        "ne2k_pci",
        "pcnet",
        "rtl8139",
        "virtio",
        "vmxnet3",
    ]
)
NET_OPTIONS = frozenset(["bridge", "firewall", "link_down", "mtu", "queues", "rate", "tag", "trunks"])
MISSING = "property is missing and it is not optional"
CLOUD_INIT_KEYS = re.compile(r"ciuser|sshkeys|nameserver|searchdomain|citype|ciupgrade|ipconfig\d+|name")


class PropertyError(ValueError):
    """One property of a property string is wrong; the message says how in PVE's words."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key
        self.message = message


def split_properties(text: str, default_key: str | None = None) -> dict[str, str]:
    """Read PVE's `a=1,b=2`; one part without `=` is the value of `default_key`. Raises ValueError."""
    found: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            if default_key is None:
                raise ValueError("invalid format - value without key, but schema does not define a default key\n")
            key, value = default_key, part
        if key in found:
            raise ValueError(f"invalid format - duplicate key in comma-separated list property: {key}\n")
        found[key] = value
    return found


def _undefined(keys: Collection[str]) -> None:
    for key in sorted(keys):
        raise ValueError(f"invalid format - invalid key in comma-separated list property: {key}\n")


def is_true(text: str) -> bool:
    """Read a PVE boolean."""
    return text.lower() in ("1", "yes", "true", "on")


@dataclass(frozen=True)
class Net:
    """A `netN` value; `options` are what is not the model and its MAC."""

    model: str
    mac: str | None
    options: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> "Net":
        """Read `virtio=BC:24:11:00:00:01,bridge=vmbr1,link_down=1`; raises PropertyError."""
        properties = split_properties(text, "model")
        mac = properties.pop("macaddr", None)
        model = properties.pop("model", None)
        for key in NIC_MODELS & properties.keys():
            model, mac = key, properties.pop(key)
        if model is None:
            raise PropertyError("model", MISSING)
        if model not in NIC_MODELS:
            choices = ", ".join(sorted(NIC_MODELS))
            raise PropertyError("model", f"value '{model}' does not have a value in the enumeration '{choices}'")
        if mac is not None and not re.fullmatch(r"[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}", mac):
            wrong = "invalid format - value does not look like a valid unicast MAC address\n"
            raise PropertyError("macaddr", wrong)
        _undefined(properties.keys() - NET_OPTIONS)
        return cls(model, mac.upper() if mac else None, properties)

    @property
    def bridge(self) -> str | None:
        """The bridge it is plugged into."""
        return self.options.get("bridge")

    @property
    def link_down(self) -> bool:
        """Whether its cable is out."""
        return is_true(self.options.get("link_down", "0"))

    @property
    def text(self) -> str:
        """As PVE stores it: the model and MAC, then the options by name."""
        return ",".join([f"{self.model}={self.mac}", *(f"{k}={v}" for k, v in sorted(self.options.items()))])


@dataclass(frozen=True)
class IpConfig:
    """An `ipconfigN` value; an address that is not static is None."""

    address: IPv4Interface | None
    gateway: IPv4Address | None

    @classmethod
    def parse(cls, text: str) -> "IpConfig":
        """Read `ip=172.31.0.11/24,gw=172.31.0.1`; raises PropertyError, and AddressValueError of what is no address."""
        properties = split_properties(text)
        _undefined(properties.keys() - {"ip", "gw", "ip6", "gw6"})
        ip, gateway = properties.get("ip"), properties.get("gw")
        if gateway and not ip:
            raise PropertyError("ip", "missing property required by 'gw'")
        try:
            if ip and ip != "dhcp" and "/" not in ip:
                raise AddressValueError(ip)
            return cls(
                IPv4Interface(ip) if ip and ip != "dhcp" else None,
                IPv4Address(gateway) if gateway else None,
            )
        except (AddressValueError, NetmaskValueError) as error:
            wrong = "invalid format - value does not look like a valid ipv4 network configuration\n"
            raise PropertyError("ip", wrong) from error


@dataclass(frozen=True)
class Drive:
    """A drive's value: a volume id, `storage:GiB` for one to make, `none` or `cdrom`, and options."""

    volume: str
    options: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> "Drive":
        """Read `local-lvm:vm-100-disk-0,size=2G`; raises PropertyError."""
        properties = split_properties(text, "file")
        if "file" not in properties:
            raise PropertyError("file", MISSING)
        return cls(properties.pop("file"), properties)

    @property
    def is_cdrom(self) -> bool:
        """Whether it is a CD drive; a cloud-init drive is one."""
        return self.options.get("media") == "cdrom" or self.volume in ("none", "cdrom") or self.is_cloudinit

    @property
    def is_cloudinit(self) -> bool:
        """Whether it is (or asks for) the generated cloud-init disk."""
        return bool(re.search(r":(?:cloudinit|vm-\d+-cloudinit)$", self.volume))

    @property
    def new_size_gib(self) -> float | None:
        """The size asked for when the volume is still to be made, else None."""
        found = re.fullmatch(r"[^:/]+:(\d+(?:\.\d+)?)", self.volume)
        return float(found[1]) if found else None

    @property
    def storage(self) -> str | None:
        """The storage that holds the volume."""
        return self.volume.partition(":")[0] if ":" in self.volume else None

    @property
    def size_bytes(self) -> int:
        """The declared size, 0 if none."""
        return parse_size(self.options.get("size", "0"))

    @property
    def text(self) -> str:
        """As PVE stores it: the volume, then the options by name."""
        return ",".join([self.volume, *(f"{k}={v}" for k, v in sorted(self.options.items()))])

    def with_size(self, size_bytes: int) -> "Drive":
        """The same drive, declared `size_bytes` large."""
        return replace(self, options={**self.options, "size": format_size(size_bytes)})


def parse_size(text: str) -> int:
    """Read `2G` or `512M` as bytes; raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text)
    if not found:
        raise ValueError(f"unable to parse size '{text}'")
    return int(float(found[1]) * SIZE_UNITS[found[2]])


def format_size(size_bytes: int) -> str:
    """Write bytes in the largest unit that divides them; volumes are whole KiB."""
    kib = -(-size_bytes // 1024)
    for unit in ("K", "M", "G"):
        if kib % 1024 or kib == 0:
            return f"{kib}{unit}"
        kib //= 1024
    return f"{kib}T"


def new_mac(taken: Collection[str]) -> str:
    """Draw a MAC address that is not in `taken`."""
    while True:
        octets = (f"{octet:02X}" for octet in secrets.token_bytes(3))
        mac = ":".join([MAC_PREFIX, *octets])
        if mac not in taken:
            return mac


def macs(config: Config) -> set[str]:
    """Every MAC address of a configuration."""
    return {net.mac for net in nets(config).values() if net.mac}


def nets(config: Config) -> dict[int, Net]:
    """The NICs of a configuration by index."""
    found = ((re.fullmatch(r"net(\d+)", key), value) for key, value in config.items())
    return dict(sorted((int(match[1]), Net.parse(str(value))) for match, value in found if match))


def drives(config: Config) -> Iterator[tuple[str, Drive]]:
    """The drives of a configuration, by key."""
    for key in sorted(config):
        if DRIVE_KEY.fullmatch(key):
            yield key, Drive.parse(str(config[key]))


def root_drive(config: Config) -> tuple[str, Drive] | None:
    """The drive that is not a CD: a lab guest has one at most."""
    return next(((key, drive) for key, drive in drives(config) if not drive.is_cdrom), None)


def memory_mib(config: Config) -> int:
    """The declared memory: `4096` or `current=4096`."""
    return int(split_properties(str(config.get("memory", DEFAULT_MEMORY_MIB)), "current")["current"])


def cores(config: Config) -> int:
    """Cores times sockets."""
    return int(config.get("cores", 1)) * int(config.get("sockets", 1))


def cpu_units(config: Config) -> int:
    """The weight among other machines, 100 by itself; no more than control groups take (cpu.weight), as in PVE."""
    return min(int(config.get("cpuunits", 100)), 10_000)


def agent_enabled(config: Config) -> bool:
    """Whether the guest agent is switched on."""
    return is_true(split_properties(str(config.get("agent", "0")), "enabled").get("enabled", "0"))


def display_name(vmid: int, config: Config) -> str:
    """The name PVE shows."""
    return str(config.get("name") or f"VM {vmid}")


def normal_tags(text: str) -> str:
    """Tags as PVE stores them: lower case, each once, by name, joined by semicolons; raises ValueError."""
    tags = {tag.lower() for tag in re.split(r"[;,\s]+", text) if tag}
    for tag in tags:
        if not re.fullmatch(r"[a-z0-9_][a-z0-9_\-+.]*", tag):
            raise ValueError("invalid format - invalid characters in tag\n")
    return ";".join(sorted(tags))


def startup_order(config: Config) -> tuple[float, float]:
    """(order, seconds to wait after the start); a VM without an order starts after those with one."""
    properties = split_properties(str(config.get("startup", "")), "order")
    return float(properties.get("order") or "inf"), float(properties.get("up") or 0)


def digest(config: Config, snapshots: Mapping[str, Config]) -> str:
    """The SHA-1 by which clients notice that someone else changed a configuration."""
    return hashlib.sha1(json.dumps([config, snapshots], sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def guest_spec(vmid: int, config: Config) -> GuestSpec:
    """What to start for `config`; raises ValueError."""
    nics = []
    for index, net in nets(config).items():
        if net.mac is None or net.bridge is None:
            raise ValueError(f"net{index}: a lab guest's NIC needs a bridge")
        if "tag" in net.options or "trunks" in net.options:
            raise ValueError(f"net{index}: the lab's kernel has no VLANs; leave out tag and trunks")
        ip = IpConfig.parse(str(config.get(f"ipconfig{index}", "")))
        nics.append(Nic(index, net.bridge, net.mac, ip.address, ip.gateway, net.link_down))
    keys = unquote(str(config.get("sshkeys", ""))).splitlines()
    root = root_drive(config)
    return GuestSpec(
        vmid=vmid,
        name=str(config.get("name") or f"vm{vmid}").partition(".")[0],
        cores=cores(config),
        memory_mib=memory_mib(config),
        cpu_units=cpu_units(config),
        disk_bytes=root[1].size_bytes if root else 0,
        nics=tuple(nics),
        user=str(config.get("ciuser", "debian")),
        authorized_keys=tuple(key.strip() for key in keys if key.strip()),
        nameserver=next(iter(re.split(r"[;,\s]+", str(config.get("nameserver", "")))), None) or None,
    )
