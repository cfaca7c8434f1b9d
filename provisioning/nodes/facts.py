"""Facts of a node that pyinfra does not bring: read over SSH, never changing anything."""

import json
import re
from collections.abc import Iterable

from pyinfra.api import FactBase

from provisioning.unit import started_before

FSTAB_SWAP = r"^[^#]+[[:space:]]swap[[:space:]]"


class MissingKernelFeatures(FactBase[list[str]]):
    """Which of overlay and br_netfilter the running kernel lacks, be they modules or built in."""

    default = list

    def command(self) -> str:
        """Look for what the features bring, not for modules: a kernel may have them built in."""
        return (
            "grep -qw overlay /proc/filesystems || echo overlay; "
            "test -e /proc/sys/net/bridge/bridge-nf-call-iptables || echo br_netfilter"
        )

    def process(self, output: Iterable[str]) -> list[str]:
        """One name a line."""
        return [line for line in output if line]


class Swaps(FactBase[list[str]]):
    """Active swap areas."""

    default = list

    def command(self) -> str:
        """The kernel's own list."""
        return "tail -n +2 /proc/swaps"

    def process(self, output: Iterable[str]) -> list[str]:
        """The path that begins each line."""
        return [line.split()[0] for line in output if line]


class SwapsInFstab(FactBase[list[str]]):
    """Lines of fstab that activate swap at boot."""

    default = list

    def command(self) -> str:
        """Lines that are no comments and whose type is swap."""
        return f"grep -E '{FSTAB_SWAP}' /etc/fstab || true"

    def process(self, output: Iterable[str]) -> list[str]:
        """As they stand."""
        return [line for line in output if line]


class SwapMasked(FactBase[bool]):
    """Whether systemd can be made to activate swap."""

    default = bool

    def command(self) -> str:
        """is-enabled says `masked`, with exit code 1."""
        return "systemctl is-enabled swap.target || true"

    def process(self, output: Iterable[str]) -> bool:
        """True when masked."""
        return "masked" in "".join(output)


class HeldPackages(FactBase[list[str]]):
    """Packages that apt holds back."""

    default = list

    def command(self) -> str:
        """One name a line."""
        return "apt-mark showhold"

    def process(self, output: Iterable[str]) -> list[str]:
        """As printed."""
        return [line for line in output if line]


class HalfInstalled(FactBase[list[str]]):
    """What dpkg complains of: packages unpacked but not configured, or a journal that was not closed."""

    default = list

    def command(self) -> str:
        """The journal lies in updates/ while dpkg is at work, or has died at it."""
        return "dpkg --audit; ls /var/lib/dpkg/updates"

    def process(self, output: Iterable[str]) -> list[str]:
        """Lines, none of them when all is well."""
        return [line for line in output if line]


class OomScoreLowerable(FactBase[bool]):
    """Whether root may lower a process's OOM score; containers without CAP_SYS_RESOURCE may not."""

    default = bool

    def command(self) -> str:
        """Tried on the shell that asks, which ends at once."""
        return "(echo -999 > /proc/self/oom_score_adj) 2>/dev/null && echo yes || echo no"

    def process(self, output: Iterable[str]) -> bool:
        """True when it was permitted."""
        return "yes" in "".join(output)


class AptListsHave(FactBase[bool]):
    """Whether apt's lists know packages."""

    default = bool

    def command(self, packages: list[str]) -> str:
        """The policy names a candidate where one is known, and says nothing of a name it has never seen."""
        self.packages = packages
        return f"apt-cache policy {' '.join(packages)}"

    def process(self, output: Iterable[str]) -> bool:
        """True when every one has a candidate."""
        return sum("Candidate:" in line and "(none)" not in line for line in output) == len(self.packages)


class KernelServesNfs(FactBase[bool]):
    """Whether the running kernel has an NFS server, loaded or to be loaded."""

    default = bool

    def command(self) -> str:
        """Its file system is there once the server is."""
        return "grep -qw nfsd /proc/filesystems || modprobe -q nfsd && echo yes || echo no"

    def process(self, output: Iterable[str]) -> bool:
        """True when it has."""
        return "yes" in "".join(output)


class StartedBefore(FactBase[bool]):
    """Whether a unit runs that was started before a file was last written: it knows an older one."""

    default = bool

    def command(self, unit: str, path: str) -> str:
        """The file, where it is newer; nothing for a unit that does not run."""
        return started_before(unit, path)

    def process(self, output: Iterable[str]) -> bool:
        """True when it is."""
        return any(line.strip() for line in output)


class UnitOutdated(FactBase[bool]):
    """Whether a unit's file is another than the one that systemd has read."""

    default = bool

    def command(self, unit: str) -> str:
        """Systemd compares the file's time with the one it has kept."""
        return f"systemctl show --property=NeedDaemonReload --value {unit}"

    def process(self, output: Iterable[str]) -> bool:
        """True when it is."""
        return "yes" in "".join(output)


class Exported(FactBase[dict[str, set[str]]]):
    """What the kernel's NFS server exports at present: options by `DIRECTORY CLIENTS`."""

    default = dict

    def command(self) -> str:
        """One export a line, as in /etc/exports; nothing where there is no such server yet."""
        return "! command -v exportfs >/dev/null || exportfs -s"

    def process(self, output: Iterable[str]) -> dict[str, set[str]]:
        """`/dir  10.0.0.0/24(rw,sync,…)`."""
        found = [match for line in output if (match := re.match(r"^(\S+)\s+(\S+)\((.*)\)$", line))]
        return {f"{match[1]} {match[2]}": set(match[3].split(",")) for match in found}


class ChartRepositories(FactBase[dict[str, str]]):
    """The chart repositories that root's Helm knows, by name."""

    default = dict

    def command(self) -> str:
        """Helm fails when it knows none."""
        return "helm repo list -o json 2>/dev/null || echo []"

    def process(self, output: Iterable[str]) -> dict[str, str]:
        """Their addresses."""
        return {row["name"]: row["url"].rstrip("/") for row in json.loads("".join(output))}
