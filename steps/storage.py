"""Files on NFS: who is offered the export, what one writes and another reads, and what an outage does to a writer."""

import secrets
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network

import pytest
from pytest_bdd import given, then, when

from certificate.verdict import NotExercised
from environments.model import Environment, Machine, Role
from provisioning.machines import in_parallel
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.session import Session
from provisioning.ssh import Result, Shell
from steps.complaints import none_of, unless
from steps.power import Power

ASK_TIMEOUT_S = 20
# The service's start, and for version 4 the grace period of 90 s; a client of version 3 goes on once it is connected.
RETURN_TIMEOUT_S = 120
LINES_BEFORE, LINES_AFTER = 20, 20
# What files are to be, as `mode uid gid`, by their names.
OWNED: Mapping[str, str] = {"plain": "644 33 33", "secret": "600 0 0", "shared": "664 33 0", "program": "755 1000 1000"}
WRITTEN = "644 0 0"  # what the writer's own file is
# Pages of a file that are in memory only, by the kernel (cachestat(2), Linux 6.5); its number is the same everywhere.
CACHESTAT = 451
UNSAVED = f"""\
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
file = os.open(sys.argv[1], os.O_RDONLY)
length, told = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
if libc.syscall({CACHESTAT}, file, ctypes.byref(length), ctypes.byref(told), 0):
    print("unknown:", os.strerror(ctypes.get_errno()))
else:
    print(told[1] + told[2])
"""
SYNCED = """\
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o644)
os.write(file, os.urandom(1_000_000))
os.fsync(file)
"""
WRITER = """\
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
told = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
for number in range(1_000_000):
    try:
        os.write(file, b"%d\\n" % number)
        os.fsync(file)
    except OSError as error:
        os.write(told, b"error %s\\n" % str(error).encode())
        sys.exit(1)
    os.write(told, b"%d\\n" % number)
"""


@dataclass(frozen=True)
class Mounts:
    """The export, mounted by several machines at `place`, with a folder of the scenario's own in it."""

    shell: Shell
    machines: tuple[Machine, ...]
    place: str
    folder: str

    def run(self, machine: Machine, script: str) -> str:
        """What `script` prints in that folder; raises ActionFailed."""
        return self.shell.check(machine, f"cd {self.place}/{self.folder} && {script}", timeout_s=60)

    def clear(self) -> None:
        """Remove the folder, unmount, and see that both are gone, however much of it came to be."""
        self.shell.check(self.machines[0], f"rm -rf {self.place}/{self.folder}", timeout_s=60)
        script = f"! mountpoint -q {self.place} || umount {self.place}; test ! -d {self.place} || rmdir {self.place}"
        in_parallel(self.machines, lambda machine: self.shell.check(machine, script, timeout_s=60))


@dataclass(frozen=True)
class Writer:
    """A process that writes and syncs line after line, and notes on its machine's own disk what was acknowledged."""

    mounts: Mounts
    machine: Machine
    unit: str

    @property
    def note(self) -> str:
        """Where it notes."""
        return f"/run/{self.unit}"

    def acknowledged(self) -> list[str]:
        """What it has noted; raises ActionFailed."""
        return self.mounts.shell.check(self.machine, f"cat {self.note}", timeout_s=30).split("\n")[:-1]

    def await_lines(self, count: int, timeout_s: float) -> list[str]:
        """Wait until it has noted so many; raises DeadlineExceeded."""

        def noted() -> list[str]:
            lines = self.acknowledged()
            if len(lines) < count and not any(line.startswith("error") for line in lines):
                raise NotYet(f"{len(lines)} lines")
            return lines

        return poll("lines of the writer", noted, timeout_s=timeout_s, interval_s=0.5)


def ask_for_exports(shell: Shell, machine: Machine, server: Machine, environment: Environment) -> Result:
    """What `showmount` says on `machine`; raises Unreachable."""
    address = environment.reached_from(machine, server)
    return shell.run(machine, f"timeout {ASK_TIMEOUT_S} showmount --no-headers -e {address}", timeout_s=60)


@pytest.fixture
def file_server(environment: Environment) -> Machine:
    """The machine that the site's files are on."""
    return environment.with_role(Role.NFS)[0]


@when("a master asks the file server what it exports", target_fixture="exports")
def master_asks(target: Session, file_server: Machine) -> Mapping[str, list[str]]:
    """Each exported directory, and to whom."""
    master = target.environment.with_role(Role.CONTROL_PLANE)[0]
    asked = ask_for_exports(target.shell, master, file_server, target.environment)
    assert asked.exit_code == 0, f"expected {file_server.name} to tell its exports, found {asked.stderr.strip()}"
    rows = [line.split(None, 1) for line in asked.stdout.splitlines() if line.strip()]
    return {row[0]: row[1].split(",") for row in rows}


@then("the declared directory is exported to the cluster's network")
def exported_to_cluster(exports: Mapping[str, list[str]], environment: Environment) -> None:
    """By what the server tells."""
    found = [client.strip() for client in exports.get(environment.nfs.export, [])]
    wanted = str(environment.nfs.clients)
    assert wanted in found, f"expected {environment.nfs.export} exported to {wanted}, found {exports or 'no export'}"


@then("the declared directory is exported to no other network")
def exported_to_nobody_else(exports: Mapping[str, list[str]], environment: Environment) -> None:
    """Everything exported, not only that directory."""

    def inside(client: str) -> bool:
        try:
            return IPv4Network(client).subnet_of(environment.nfs.clients)
        except ValueError:
            return False

    none_of(
        {
            directory: [
                f"expected it exported within {environment.nfs.clients} only, found {client.strip()}"
                for client in clients
                if not inside(client.strip())
            ]
            for directory, clients in exports.items()
        }
    )


@when("a machine of the database's network asks the file server what it exports", target_fixture="asked")
def outsider_asks(target: Session, file_server: Machine) -> Result:
    """A machine that has no leg in any of the file server's networks; by a plain connection, for it has no client."""
    environment = target.environment
    outsider = next(
        machine
        for machine in environment.with_role(Role.NDB_DATA, Role.NDB_MANAGEMENT)
        if not set(machine.addresses) & set(file_server.addresses)
    )
    address = environment.address(file_server)
    script = f"timeout 5 bash -c 'exec 3<>/dev/tcp/{address}/2049' && echo answered || echo silence"
    neighbour = environment.with_role(Role.WORKER)[0]
    heard = target.shell.run(neighbour, script, timeout_s=30).stdout.strip()
    assert heard == "answered", f"expected {file_server.name} to answer {neighbour.name} at least, found {heard}"
    return target.shell.run(outsider, script, timeout_s=30)


@then("it gets no answer")
def no_answer(asked: Result) -> None:
    """Neither a connection nor a word, from a server that answers others."""
    assert asked.stdout.strip() == "silence", f"expected no connection to the file server, found {asked.stdout.strip()}"


@given("the site's files mounted on every worker", target_fixture="mounts")
def mounted(target: Session, file_server: Machine) -> Iterator[Mounts]:
    """The export itself, beside the site's own mounts; each mount is seen to be one before anything is written."""
    environment, token = target.environment, secrets.token_hex(4)
    workers = environment.with_role(Role.WORKER)
    mounts = Mounts(target.shell, workers, f"/run/haproof-{token}", f".haproof-{token}")
    source = f"{environment.reached_from(workers[0], file_server)}:{environment.nfs.export}"

    def mount(machine: Machine) -> None:
        script = f"mkdir -p {mounts.place} && mount -t nfs -o hard,nfsvers=3 {source} {mounts.place}"
        done = target.shell.run(machine, script, timeout_s=120)
        assert done.exit_code == 0, f"expected {machine.name} to mount {source}, found {done.stderr.strip()}"
        # A helper that says yes with nothing mounted would have every later step pass on the local disk.
        told = target.shell.run(machine, f"findmnt -n -t nfs,nfs4,fuse.nfs -o SOURCE {mounts.place}").stdout.strip()
        assert told == source, f"expected {source} mounted by NFS on {machine.name}, found {told or 'another disk'}"

    try:
        in_parallel(workers, mount)
        made = target.shell.run(workers[0], f"mkdir -m 777 {mounts.place}/{mounts.folder}", timeout_s=60)
        assert made.exit_code == 0, f"expected {source} to be written to, found {made.stderr.strip()}"
        yield mounts
    finally:
        mounts.clear()


@when("one worker writes a file and closes it", target_fixture="written")
def write_file(mounts: Mounts) -> str:
    """The first one; what it wrote."""
    text = secrets.token_hex(2000)
    mounts.run(mounts.machines[0], f"printf %s {text} > shared && sha256sum < shared")
    return text


@then("every worker reads what was written")
def everybody_reads(mounts: Mounts, written: str) -> None:
    """Byte for byte, the writer too."""
    found = {machine.name: mounts.run(machine, "cat shared") for machine in mounts.machines}
    none_of(
        {
            name: unless(text == written, f"expected the {len(written)} bytes written, found {len(text)} others")
            for name, text in found.items()
        }
    )


@when("one worker writes a file and has it synced")
def write_synced(mounts: Mounts) -> None:
    """The first one; a megabyte, which the server's kernel would keep for half a minute by itself."""
    mounts.run(mounts.machines[0], f"python3 -c {shlex.quote(SYNCED)} synced")


@then("nothing of that file is left in the server's memory only")
def on_disk(mounts: Mounts, target: Session, file_server: Machine) -> None:
    """By the server's kernel; one that cannot tell has its own NFS server, which tells how it exports."""
    export = target.environment.nfs.export
    where = f"{export}/{mounts.folder}/synced"
    told = target.shell.check(file_server, f"python3 -c {shlex.quote(UNSAVED)} {where}", timeout_s=30).strip()
    if told.isdigit():
        assert told == "0", f"expected all of an acknowledged file on the disk, found {told} pages in memory only"
        return
    options = target.shell.run(file_server, "exportfs -v", timeout_s=30).stdout
    if not options.strip():
        raise NotExercised(f"the kernel of {file_server.name} cannot tell what is on its disk ({told})")
    assert "async" not in options, f"expected {export} exported with sync, found {options.strip()}"


@when("one worker writes files of different owners and modes", target_fixture="owned")
def write_owned(mounts: Mounts) -> Mapping[str, str]:
    """What each file is to be, as `mode uid gid`, by its name."""
    lines = []
    for name, described in OWNED.items():
        mode, uid, gid = described.split()
        # What the server refuses shows in what the file is afterwards.
        lines.append(f"touch {name}; chown {uid}:{gid} {name} || true; chmod {mode} {name} || true")
    mounts.run(mounts.machines[0], "; ".join(lines))
    return OWNED


@then("every worker sees these owners and modes")
def everybody_sees(mounts: Mounts, owned: Mapping[str, str]) -> None:
    """Each file on each worker."""
    none_of({machine.name: unlike(mounts, machine, owned) for machine in mounts.machines})


def unlike(mounts: Mounts, machine: Machine, owned: Mapping[str, str]) -> list[str]:
    """Files whose `mode uid gid` is not as wanted, as the machine sees them; raises ActionFailed."""
    told = mounts.run(machine, f"stat -c '%n %a %u %g' {' '.join(owned)}").splitlines()
    found = {line.split()[0]: line.split(None, 1)[1] for line in told}
    return [
        f"expected {name} to be {wanted}, found {found.get(name)}"
        for name, wanted in owned.items()
        if found.get(name) != wanted
    ]


@given("a worker that writes and syncs one line after another", target_fixture="writer")
def writing(mounts: Mounts) -> Iterator[Writer]:
    """A transient unit on the last worker, which ends with the scenario."""
    machine, unit = mounts.machines[-1], f"haproof-writer-{secrets.token_hex(4)}"
    writer = Writer(mounts, machine, unit)
    program = f"python3 -c {shlex.quote(WRITER)} {mounts.place}/{mounts.folder}/lines {writer.note}"
    mounts.shell.check(machine, f"systemd-run --quiet --collect --unit={unit} {program}", timeout_s=30)
    yield writer
    mounts.shell.check(
        machine, f"! systemctl -q is-active {unit} || systemctl stop {unit}; rm -f {writer.note}", timeout_s=120
    )


@when("the file server loses its power and gets it back")
def server_cut(writer: Writer, power: Power, file_server: Machine) -> None:
    """While the worker writes."""
    writer.await_lines(LINES_BEFORE, 60)
    power.cut((file_server,))
    power.heal()


@then("the worker goes on writing without an error")
def goes_on(writer: Writer) -> None:
    """A hard mount waits; it never fails."""
    before = len(writer.acknowledged())
    try:
        lines = writer.await_lines(before + LINES_AFTER, RETURN_TIMEOUT_S)
    except DeadlineExceeded as error:
        raise AssertionError(
            f"expected the writer to go on within {RETURN_TIMEOUT_S} s, found {error.last_state}"
        ) from error
    errors = [line for line in lines if line.startswith("error")]
    assert not errors, f"expected the writer to wait, found {errors}"


@then("every line that was acknowledged is in the file, whose owner and mode are as before")
def nothing_lost(writer: Writer) -> None:
    """Read by another worker; a line may be there twice, for its acknowledgement may have been lost."""
    none_of({"lines": unlike(writer.mounts, writer.mounts.machines[0], {"lines": WRITTEN})})
    acknowledged = writer.acknowledged()
    found = set(writer.mounts.run(writer.mounts.machines[0], "cat lines").split())
    lost = [line for line in acknowledged if line not in found]
    assert not lost, f"expected {len(acknowledged)} acknowledged lines, lost {', '.join(lost[:10])}"
