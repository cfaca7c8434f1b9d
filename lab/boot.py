"""What a guest boots with: its name, user and network as cloud-init would set them, and LXC's configuration."""

import shlex
import signal
from pathlib import Path

from lab.cgroup import Cgroup, hierarchies, shares_of
from lab.driver import GuestSpec, Nic
from lab.home import Home

FIRST_NIC = 18  # a virtio card of a Proxmox VM is ens18, the second ens19
POWEROFF_SIGNAL = signal.SIGRTMIN + 3  # systemd(1): halt; the same one `lxc-stop` sends
LXCFS_FILES = ("meminfo", "uptime")


def nic_name(nic: Nic) -> str:
    """Name a card as the guest sees it."""
    return f"ens{FIRST_NIC + nic.index}"


def cable_name(vmid: int, nic_index: int) -> str:
    """Name the bridge's end of a card's cable."""
    return f"v{vmid}i{nic_index}"


def render_interfaces(nics: tuple[Nic, ...]) -> str:
    """Write /etc/network/interfaces as true documentation of what is set (interfaces(5)).

    No `auto` lines: the cards come up with their addresses before init runs, and ifup would fail on them.
    """
    lines = ["# Brought up by the hypervisor at boot.", "auto lo", "iface lo inet loopback"]
    for nic in nics:
        lines += ["", f"iface {nic_name(nic)} inet {'static' if nic.address else 'manual'}"]
        if nic.address:
            lines.append(f"    address {nic.address}")
        if nic.gateway:
            lines.append(f"    gateway {nic.gateway}")
    return "\n".join(lines) + "\n"


def render_preparation(spec: GuestSpec, first_boot: bool) -> str:
    """Write the shell script that does inside the guest's root what cloud-init does at boot.

    A clone is a new machine: at its first boot it loses the identity it was copied with (machine id, SSH host
    keys), and gets its user. Later boots only follow the configuration.
    """
    user, name = shlex.quote(spec.user), shlex.quote(spec.name)
    lines = ["set -eu", f"echo {name} > /etc/hostname", "touch /etc/hosts"]
    lines += [
        r"grep -q '[[:space:]]localhost\b' /etc/hosts || "
        r"printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' >> /etc/hosts",
        "mkdir -p /etc/network /etc/sudoers.d",
        f"printf %s {shlex.quote(render_interfaces(spec.nics))} > /etc/network/interfaces",
    ]
    if spec.nameserver:
        lines += [
            "rm -f /etc/resolv.conf",
            f"echo nameserver {shlex.quote(spec.nameserver)} > /etc/resolv.conf",
        ]
    if first_boot:
        lines += [
            ": > /etc/machine-id",
            "rm -f /var/lib/dbus/machine-id /etc/ssh/ssh_host_*",
            "if [ -x /usr/bin/ssh-keygen ]; then ssh-keygen -A; fi",
            f"grep -q '[[:space:]]'{name} /etc/hosts || echo 127.0.1.1 {name} >> /etc/hosts",
        ]
    if spec.authorized_keys:
        keys = shlex.quote("\n".join(spec.authorized_keys) + "\n")
        lines += [
            f"id {user} || useradd --create-home --shell /bin/bash --password '*' {user}",
            f"home=$(getent passwd {user} | cut -d: -f6)",
            f'install -d -m 700 -o {user} -g "$(id -g {user})" "$home/.ssh"',
            f'printf %s {keys} > "$home/.ssh/authorized_keys"',
            'chmod 600 "$home/.ssh/authorized_keys"',
            f'chown {user}: "$home/.ssh/authorized_keys"',
        ]
        if spec.user != "root":
            sudoers = f"/etc/sudoers.d/90-{user}"
            lines += [f"echo {user} 'ALL=(ALL) NOPASSWD:ALL' > {sudoers}", f"chmod 440 {sudoers}"]
    return "\n".join(lines) + "\n"


def render_config(spec: GuestSpec, home: Home, root: Path, *, cgroup: Cgroup, lxcfs: Path | None, cores: int) -> str:
    """Write the guest's LXC configuration (lxc.container.conf(5)); `cores` is how many the machine has.

    `root` is the mounted root, `lxcfs` the mount point of a running lxcfs, when there is one.
    """
    unified = all(h.unified for h in hierarchies())
    lines = [
        f"lxc.uts.name = {spec.name}",
        f"lxc.rootfs.path = dir:{root}",
        # A VM has a kernel of its own: nothing is taken from root in here, the sealed network is the wall.
        "lxc.cap.drop =",
        "lxc.apparmor.profile = unconfined",
        "lxc.mount.auto = proc:rw sys:rw cgroup:rw:force",
        "lxc.autodev = 1",
        "lxc.tty.max = 0",
        "lxc.pty.max = 64",
        "lxc.init.cmd = /sbin/init",
        f"lxc.signal.halt = {int(POWEROFF_SIGNAL)}",
        f"lxc.console.logfile = {home.console_log}",
        "lxc.console.path = none",
        f"lxc.log.file = {home.lxc_log}",
        "lxc.log.level = WARN",
        # What the guest mounts must reach its containers; systemd arranges that on real machines only.
        "lxc.rootfs.options = rshared",
        f"lxc.cgroup.dir.container = {cgroup.name}/{spec.vmid}",
        f"lxc.cgroup.dir.monitor = {cgroup.name}/monitor-{spec.vmid}",
        f"lxc.cgroup.dir.monitor.pivot = {cgroup.name}/pivot",
        "lxc.mount.entry = /dev/kmsg dev/kmsg none bind,create=file 0 0",
        "lxc.mount.entry = /dev/fuse dev/fuse none bind,create=file 0 0",
    ]
    memory_bytes = spec.memory_mib * 2**20
    quota_us = spec.cores * 100_000
    if unified:
        lines.append(f"lxc.cgroup2.memory.max = {memory_bytes}")
        lines.append(f"lxc.cgroup2.cpu.weight = {spec.cpu_units}")
        if spec.cores < cores:
            lines.append(f"lxc.cgroup2.cpu.max = {quota_us} 100000")
    else:
        lines.append(f"lxc.cgroup.memory.limit_in_bytes = {memory_bytes}")
        lines.append(f"lxc.cgroup.cpu.shares = {shares_of(spec.cpu_units)}")
        if spec.cores < cores:
            lines.append(f"lxc.cgroup.cpu.cfs_quota_us = {quota_us}")
    if lxcfs:
        for file in LXCFS_FILES:
            lines.append(f"lxc.mount.entry = {lxcfs}/proc/{file} proc/{file} none bind,optional 0 0")
    for nic in spec.nics:
        key = f"lxc.net.{nic.index}"
        lines += [
            f"{key}.type = veth",
            f"{key}.link = {nic.bridge}",
            f"{key}.flags = up",
            f"{key}.name = {nic_name(nic)}",
            f"{key}.hwaddr = {nic.mac}",
            f"{key}.veth.pair = {cable_name(spec.vmid, nic.index)}",
            f"{key}.script.up = {home.cable_script}",
        ]
        if nic.address:
            lines.append(f"{key}.ipv4.address = {nic.address}")
        if nic.gateway:
            lines.append(f"{key}.ipv4.gateway = {nic.gateway}")
    return "\n".join(lines) + "\n"
