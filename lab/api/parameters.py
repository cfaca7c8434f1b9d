"""Request parameters: read from query, form or JSON body and checked with PVE's own messages.

Parameters that PVE numbers (`net0`, `net1`, …) are one field with the alias `net[n]`, as the API's schema spells
them: a mapping from index to value.
"""

import re
from collections.abc import Callable
from json import JSONDecodeError
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Request
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from lab import vmconfig
from lab.refusal import Refusal, invalid
from lab.vmconfig import MISSING, PropertyError, Value

UNDEFINED = "property is not defined in schema and the schema does not allow additional properties"
TRUE = frozenset({"1", "true", "yes", "on"})
FALSE = frozenset({"0", "false", "no", "off"})


class Parameters(BaseModel):
    """The parameters of one call; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


P = TypeVar("P", bound=Parameters)


class Reads(Generic[P]):
    """A FastAPI dependency: the parameters of a request as `model`."""

    def __init__(self, model: type[P]) -> None:
        self.model = model
        self._series = {
            name.removesuffix("[n]"): name
            for name in (field.alias or "" for field in model.model_fields.values())
            if name.endswith("[n]")
        }

    async def __call__(self, request: Request) -> P:
        """Read and check; raises PVE's 400."""
        values = {**_pairs(request.query_params.multi_items()), **await _body(request), **request.path_params}
        gathered: dict[str, Any] = {}
        errors: dict[str, str] = {}
        for name, value in values.items():
            found = re.fullmatch(r"([a-z]+)(0|[1-9]\d?)", name)
            if found and found[1] in self._series:
                gathered.setdefault(self._series[found[1]], {})[int(found[2])] = value
            elif name.endswith("[n]"):
                errors[name] = UNDEFINED
            else:
                gathered[name] = value
        try:
            checked = self.model.model_validate(gathered)
        except ValidationError as error:
            raise invalid({**errors, **{_name(each): _message(each) for each in error.errors()}}) from error
        if errors:
            raise invalid(errors)
        return checked


def _pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Name and value; a name that comes twice has a list."""
    values: dict[str, Any] = {}
    for name, value in items:
        if name in values:
            before = values[name]
            values[name] = [*before, value] if isinstance(before, list) else [before, value]
        else:
            values[name] = value
    return values


async def _body(request: Request) -> dict[str, Any]:
    if not request.headers.get("content-type", "").startswith("application/json"):
        return _pairs((await request.form()).multi_items())
    if not await request.body():
        return {}
    try:
        values = await request.json()
    except (JSONDecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, f"malformed JSON body: {error}") from error
    if not isinstance(values, dict):
        raise Refusal(400, "malformed JSON body: an object with the parameters was expected")
    return values


def _name(error: ErrorDetails) -> str:
    """The parameter an error is about: `net3` for `net[n]`, 3."""
    name, *rest = (str(part) for part in error["loc"])
    return name.removesuffix("[n]") + rest[0] if name.endswith("[n]") and rest else name


def _message(error: ErrorDetails) -> str:
    """A pydantic error in PVE's words."""
    if error["loc"][-1] == "[key]":  # an index beyond PVE's last
        return UNDEFINED
    context = error.get("ctx", {})
    words: dict[str, Callable[[], str]] = {
        "missing": lambda: MISSING,
        "extra_forbidden": lambda: UNDEFINED,
        "value_error": lambda: _refusal_of_format(_name(error), context["error"]),
        "string_pattern_mismatch": lambda: "value does not match the regex pattern",
        "string_too_long": lambda: f"value may only be {context['max_length']} characters long",
        "string_too_short": lambda: f"value must be at least {context['min_length']} characters long",
        "greater_than_equal": lambda: f"value must have a minimum value of {context['ge']}",
        "less_than_equal": lambda: f"value must have a maximum value of {context['le']}",
        "string_type": lambda: f"type check ('string') failed - got '{_shown(error['input'])}'",
    }
    return words.get(error["type"], lambda: error["msg"])()


def _refusal_of_format(name: str, error: ValueError) -> str:
    if isinstance(error, PropertyError):
        return f"invalid format - format error\n{name}.{error.key}: {error.message}\n"
    return str(error)


def _shown(value: object) -> object:
    """A wrong value as PVE's messages show it."""
    if isinstance(value, list | dict):
        return "ARRAY" if isinstance(value, list) else "HASH"
    return value


# ------------------------------------------------------------------ types


def _boolean(value: object) -> bool:
    text = str(int(value)) if isinstance(value, bool) else str(value).lower()
    if text not in TRUE | FALSE:
        raise ValueError(f"type check ('boolean') failed - got '{_shown(value)}'")
    return text in TRUE


def _integer(value: object) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"[+-]?\d+", str(value), re.ASCII):
        raise ValueError(f"type check ('integer') failed - got '{_shown(value)}'")
    return int(str(value))


def _number(value: object) -> float:
    if isinstance(value, bool) or not re.fullmatch(r"[+-]?\d+(\.\d+)?", str(value), re.ASCII):
        raise ValueError(f"type check ('number') failed - got '{_shown(value)}'")
    return float(str(value))


def _strings(value: object) -> object:
    return value if isinstance(value, list) else [value]


def one_of(*choices: str) -> AfterValidator:
    """Accept these strings only."""

    def check(value: str) -> str:
        if value not in choices:
            listed = ", ".join(choices)
            raise ValueError(f"value '{value}' does not have a value in the enumeration '{listed}'")
        return value

    return AfterValidator(check)


def _format(pattern: str, message: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(f"invalid format - {message.format(value)}\n")
        return value

    return AfterValidator(check)


def _net(text: str) -> str:
    vmconfig.Net.parse(text)
    return text


def _ipconfig(text: str) -> str:
    vmconfig.IpConfig.parse(text)
    return text


def _drive(text: str) -> str:
    drive = vmconfig.Drive.parse(text)
    if "size" in drive.options:
        vmconfig.parse_size(drive.options["size"])
    return text


def _memory(text: str) -> str:
    try:
        mib = vmconfig.memory_mib({"memory": text})
    except (KeyError, ValueError) as error:
        raise PropertyError("current", f"type check ('integer') failed - got '{text}'") from error
    if mib < 16:
        raise PropertyError("current", "value must have a minimum value of 16")
    return text


def _agent(text: str) -> str:
    properties = vmconfig.split_properties(text, "enabled")
    _boolean(properties.get("enabled", "0"))
    return text


Boolean = Annotated[bool, BeforeValidator(_boolean)]
Integer = Annotated[int, BeforeValidator(_integer)]
Number = Annotated[float, BeforeValidator(_number)]
Strings = Annotated[list[str], BeforeValidator(_strings)]
Vmid = Annotated[Integer, Field(ge=100, le=999_999_999)]
Count = Annotated[Integer, Field(ge=0)]
Positive = Annotated[Integer, Field(ge=1)]
NodeName = Annotated[
    str, _format(r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?", "value does not look like a valid node name")
]
DnsName = Annotated[
    str,
    _format(
        r"(?=.{1,253}$)[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*",
        "value does not look like a valid DNS name",
    ),
]
StorageName = Annotated[
    str, _format(r"[a-zA-Z][a-zA-Z0-9._-]*[a-zA-Z0-9]", "storage ID '{0}' contains illegal characters")
]
ConfigId = Annotated[str, Field(max_length=40), _format(r"[A-Za-z][\w-]+", "invalid configuration ID '{0}'")]
UrlEncoded = Annotated[str, _format(r"[a-zA-Z0-9\-%_.!~*'()]*", "invalid urlencoded string: {0}")]
Digest = Annotated[str, Field(max_length=40)]
Tags = Annotated[str, AfterValidator(vmconfig.normal_tags)]
NetText = Annotated[str, AfterValidator(_net)]
IpConfigText = Annotated[str, AfterValidator(_ipconfig)]
DriveText = Annotated[str, AfterValidator(_drive)]
SerialText = Annotated[str, Field(pattern=r"^(/dev/.+|socket)$")]
MemoryText = Annotated[str, AfterValidator(_memory)]
AgentText = Annotated[str, AfterValidator(_agent)]
DriveKey = Annotated[str, Field(pattern=rf"^({vmconfig.DRIVE_KEY.pattern}|efidisk0|tpmstate0)$")]


class AtNode(Parameters):
    """A call below /nodes/{node}."""

    node: NodeName


class AtVm(AtNode):
    """A call below /nodes/{node}/qemu/{vmid}."""

    vmid: Vmid


class AtSnapshot(AtVm):
    """A call below …/snapshot/{snapname}."""

    snapname: ConfigId


class AtStorage(AtNode):
    """A call below /nodes/{node}/storage/{storage}."""

    storage: StorageName


class VmOptions(AtVm):
    """What a VM's configuration takes; PVE knows more, the lab what it keeps or acts on."""

    acpi: Boolean | None = None
    agent: AgentText | None = None
    autostart: Boolean | None = None
    balloon: Count | None = None
    bios: Annotated[str, one_of("seabios", "ovmf")] | None = None
    boot: str | None = None
    bootdisk: str | None = None
    citype: Annotated[str, one_of("configdrive2", "nocloud", "opennebula")] | None = None
    ciupgrade: Boolean | None = None
    ciuser: str | None = None
    cores: Positive | None = None
    cpu: str | None = None
    cpulimit: Annotated[Number, Field(ge=0, le=128)] | None = None
    cpuunits: Annotated[Integer, Field(ge=1, le=262144)] | None = None
    description: Annotated[str, Field(max_length=8192)] | None = None
    hotplug: str | None = None
    ide: dict[Annotated[int, Field(le=3)], DriveText] = Field(default={}, alias="ide[n]")
    ipconfig: dict[Annotated[int, Field(le=31)], IpConfigText] = Field(default={}, alias="ipconfig[n]")
    kvm: Boolean | None = None
    machine: str | None = None
    memory: MemoryText | None = None
    name: DnsName | None = None
    nameserver: str | None = None
    net: dict[Annotated[int, Field(le=31)], NetText] = Field(default={}, alias="net[n]")
    numa: Boolean | None = None
    onboot: Boolean | None = None
    ostype: (
        Annotated[
            str,
            one_of(
                *[
                    "other",
                    "wxp",
                    "w2k",
                    "w2k3",
                    "w2k8",
                    "wvista",
                    "win7",
                    "win8",
                    "win10",
                    "win11",
                    "l24",
                    "l26",
                    "solaris",
                ]
            ),
        ]
        | None
    ) = None
    protection: Boolean | None = None
    rng0: str | None = None
    sata: dict[Annotated[int, Field(le=5)], DriveText] = Field(default={}, alias="sata[n]")
    scsi: dict[Annotated[int, Field(le=30)], DriveText] = Field(default={}, alias="scsi[n]")
    scsihw: (
        Annotated[str, one_of(*["lsi", "lsi53c810", "virtio-scsi-pci", "virtio-scsi-single", "megasas", "pvscsi"])]
        | None
    ) = None
    searchdomain: str | None = None
    serial: dict[Annotated[int, Field(le=3)], SerialText] = Field(default={}, alias="serial[n]")
    smbios1: Annotated[str, Field(max_length=512)] | None = None
    sockets: Positive | None = None
    sshkeys: UrlEncoded | None = None
    startup: Annotated[str, _format(r"(order=)?\d+(,(up|down)=\d+)*", "unable to parse startup options")] | None = None
    tablet: Boolean | None = None
    tags: Tags | None = None
    vga: str | None = None
    virtio: dict[Annotated[int, Field(le=15)], DriveText] = Field(default={}, alias="virtio[n]")
    vmgenid: str | None = None
    watchdog: str | None = None

    def options(self) -> dict[str, Value]:
        """The configuration keys that were sent, flat, as the configuration file holds them."""
        found: dict[str, Value] = {}
        for name in VmOptions.model_fields.keys() & self.model_fields_set - {"node", "vmid"}:
            value = getattr(self, name)
            if isinstance(value, dict):
                found |= {f"{name}{index}": each for index, each in value.items()}
            else:
                found[name] = int(value) if isinstance(value, bool) else value
        return found
