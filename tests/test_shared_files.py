"""The lab's NFS client, as programs on two machines meet it: both mount the site's export beside the site's own mounts.

Each test is a program that runs on a worker of the built target. What a power cut costs is a scenario of its own.
"""

import secrets
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from environments.model import Machine, Role
from provisioning.machines import in_parallel
from provisioning.poll import NotYet, poll
from provisioning.session import Session
from provisioning.ssh import Result

pytestmark = pytest.mark.lab
AWAY_S = 20


@dataclass(frozen=True)
class Share:
    """The export at `place` on two machines, with the tests' own folder in it."""

    session: Session
    machines: tuple[Machine, Machine]
    server: Machine
    place: str
    folder: str

    @property
    def source(self) -> str:
        """What is mounted."""
        environment = self.session.environment
        return f"{environment.reached_from(self.machines[0], self.server)}:{environment.nfs.export}"

    def mount(self, machine: Machine, place: str, options: str = "hard", timeout_s: float = 120) -> Result:
        """Mount the export at `place` of a machine."""
        command = f"mkdir -p {place} && mount -t nfs -o nfsvers=3,{options} {self.source} {place}"
        return self.session.shell.run(machine, command, timeout_s=timeout_s)

    def run(self, program: str, *, on: int = 0, timeout_s: float = 120) -> str:
        """What a Python program prints that runs in the folder on one of the machines; it must not fail."""
        head = "import errno, os, stat, subprocess, time\n"
        text = f"{head}os.chdir({self.place + '/' + self.folder!r})\n{textwrap.dedent(program)}"
        return self.session.shell.check(self.machines[on], "python3 -", stdin=text, timeout_s=timeout_s).strip()


@pytest.fixture(scope="module")
def share(lab_target: Session) -> Iterator[Share]:
    session = lab_target
    first, second = session.environment.with_role(Role.WORKER)[:2]
    token = secrets.token_hex(4)
    server = session.environment.with_role(Role.NFS)[0]
    share = Share(session, (first, second), server, f"/run/haproof-{token}", f".haproof-{token}")
    for machine in share.machines:
        mounted = share.mount(machine, share.place)
        assert mounted.exit_code == 0, mounted.stderr
    session.shell.check(first, f"mkdir -m 777 {share.place}/{share.folder}")
    try:
        yield share
    finally:
        session.shell.check(first, f"rm -rf {share.place}/{share.folder}", timeout_s=120)
        in_parallel(share.machines, lambda m: session.shell.check(m, f"umount {share.place} && rmdir {share.place}"))


def test_what_is_set_is_what_is_read_on_both(share: Share) -> None:
    share.run("""
        with open("data", "wb") as file: file.write(b"x" * 5000)
        os.chmod("data", 0o640); os.chown("data", 33, 4242)
        os.utime("data", ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))
        os.symlink("data", "link"); os.link("data", "second"); os.mkdir("folder", 0o750); os.mkfifo("fifo")
        os.truncate("second", 4000)
        os.utime("data", ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))
    """)
    told = share.run(
        """
        found = os.stat("data")
        print(oct(found.st_mode), found.st_uid, found.st_gid, found.st_size, found.st_nlink)
        print(found.st_atime_ns, found.st_mtime_ns)
        print(os.readlink("link"), oct(os.stat("folder").st_mode), stat.S_ISFIFO(os.stat("fifo").st_mode))
        print(sorted(os.listdir(".")))
        """,
        on=1,
    )
    assert told.splitlines() == [
        "0o100640 33 4242 4000 2",
        "1600000000123456789 1500000000987654321",
        "data 0o40750 True",
        "['data', 'fifo', 'folder', 'link', 'second']",
    ]
    share.run("for name in ('data', 'fifo', 'link', 'second'): os.remove(name)\nos.rmdir('folder')", on=1)
    assert share.run("print(os.listdir('.'))") == "[]"


def test_a_rename_takes_the_place_of_another_at_once(share: Share) -> None:
    share.run("""
        os.mkdir("from"); os.mkdir("to")
        for name, text in (("from/new", "new"), ("to/old", "old")):
            with open(name, "w") as file: file.write(text)
        kept = open("to/old")
        os.rename("from/new", "to/old")
        assert open("to/old").read() == "new", "the new one is not there"
        assert kept.read() == "old", "who had the old one open has lost it"
        kept.close()
        try: os.rename("to", "to/below")
        except OSError as error: assert error.errno == errno.EINVAL, error
        else: raise AssertionError("a folder was moved into itself")
    """)
    assert share.run("print(os.listdir('from'), open('to/old').read())", on=1) == "[] new"
    share.run("os.remove('to/old'); os.rmdir('to'); os.rmdir('from')")


def test_a_file_that_was_removed_is_there_for_who_has_it_open(share: Share) -> None:
    share.run("""
        with open("open", "w+") as file:
            file.write("kept"); file.flush()
            os.remove("open")
            assert not os.path.exists("open")
            file.seek(0)
            assert file.read() == "kept"
    """)

    # Until the kernel has told of the last close, which close(2) does not wait for, the file has a hidden name.
    def nothing_is_left() -> bool:
        if (left := share.run("print(os.listdir('.'))")) != "[]":
            raise NotYet(left)
        return True

    poll("the end of the hidden name", nothing_is_left, timeout_s=10, interval_s=0.1)


def test_of_many_who_make_a_file_one_makes_it(share: Share) -> None:
    program = """
        made = []
        for number in range(60):
            try: os.close(os.open(f"only-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError: continue
            made.append(number)
        print(*made)
    """
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda on: set(share.run(program, on=on).split()), (0, 1))
    assert one | other == {str(number) for number in range(60)}
    assert not one & other
    share.run("for name in os.listdir('.'): os.remove(name)")


def test_what_is_appended_by_many_is_all_there(share: Share) -> None:
    told = share.run("""
        writer = "import os\\nfor n in range(200): os.write(fd, f'{who} {n}\\\\n'.encode())"
        head = "import os; fd = os.open('log', os.O_WRONLY | os.O_APPEND | os.O_CREAT); who = {who}\\n"
        running = [subprocess.Popen(["python3", "-c", head.replace("{who}", str(who)) + writer]) for who in range(4)]
        assert [process.wait() for process in running] == [0] * 4
        lines = open("log").read().splitlines()
        print(len(lines), len(set(lines)))
        os.remove("log")
    """)
    assert told == "800 800"


def test_a_group_of_somebodys_opens_what_is_the_groups(share: Share) -> None:
    told = share.run("""
        with open("shared", "w") as file: file.write("for the group")
        os.chown("shared", 0, 4242); os.chmod("shared", 0o640)
        for groups in ([4242], []):
            child = os.fork()
            if child == 0:
                os.setgroups(groups); os.setgid(1234); os.setuid(1234)
                try: os._exit(0 if open("shared").read() == "for the group" else 1)
                except PermissionError: os._exit(13)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os.remove("shared")
    """)
    assert told.split() == ["0", "13"]


def test_free_space_is_the_servers(share: Share) -> None:
    here = share.run("found = os.statvfs('.'); print(found.f_blocks * found.f_frsize)")
    export = share.session.environment.nfs.export
    there = share.session.shell.check(
        share.server, f"python3 -c 'import os; f = os.statvfs(\"{export}\"); print(f.f_blocks * f.f_frsize)'"
    )
    assert int(here) == int(there)


def test_what_one_closed_the_other_opens(share: Share) -> None:
    """Close-to-open, over the two machines, with lengths that are alike and lengths that are not."""
    for number in range(10):
        text = f"{number} " + "x" * (100 if number % 2 else number * 3000)
        share.run(f"with open('passed', 'w') as file: file.write({text!r})", on=number % 2)
        found = share.run(
            "import hashlib; print(hashlib.sha256(open('passed','rb').read()).hexdigest())", on=1 - number % 2
        )
        own = share.run("import hashlib; print(hashlib.sha256(open('passed','rb').read()).hexdigest())", on=number % 2)
        assert found == own, f"the other machine reads something else in round {number}"
    share.run("os.remove('passed')")


def test_what_one_appends_the_other_reads_and_goes_on_from(share: Share) -> None:
    """Close-to-open as well where the kernel of the one who opens has just been told another length."""
    wanted = ""
    share.run("open('grown', 'w').close()")
    for number in range(6):
        text = f"{number}" + "y" * number * 1000
        for on in (0, 1):
            share.run("os.stat('grown')", on=on)
        share.run(f"with open('grown', 'a') as file: file.write({text!r})", on=number % 2)
        wanted += text
        for on in (1 - number % 2, number % 2):
            assert share.run("print(open('grown').read())", on=on) == wanted, f"machine {on}, round {number}"
    share.run("os.remove('grown')")


def test_a_mount_that_is_refused_is_none(share: Share) -> None:
    place = f"{share.place}-none"
    command = f"mkdir -p {place} && mount -t nfs -o nfsvers=3 {share.source}/no-such {place}"
    done = share.session.shell.run(share.machines[0], command)
    told = share.session.shell.run(share.machines[0], f"findmnt {place}; rmdir {place}")
    assert done.exit_code == 32, done
    assert share.source in done.stderr
    assert told.stdout == ""


def test_a_hard_mount_waits_for_its_server_and_a_soft_one_gives_up(share: Share) -> None:
    """The server hangs; what hangs with it goes on where it was, and a mount that began meanwhile is made."""
    hypervisor, shell, machine = share.session.hypervisor, share.session.shell, share.machines[0]
    soft, late = f"{share.place}-soft", f"{share.place}-late"
    mounted = share.mount(machine, soft, "soft,timeo=10,retrans=1")
    assert mounted.exit_code == 0, mounted.stderr
    status = f"qemu/{share.server.vmid}/status"
    with ThreadPoolExecutor(3) as pool:
        hypervisor.call("post", f"{status}/suspend")
        try:
            hard = pool.submit(
                share.run,
                """
                with open("waited", "w") as file:
                    file.write("written"); file.flush(); os.fsync(file.fileno())
                """,
            )
            mounting = pool.submit(share.mount, machine, late)
            gave_up = shell.run(
                machine,
                f'python3 -c \'import os, time; s = time.monotonic()\ntry: os.listdir("{soft}")\n'
                "except OSError as e: print(e.errno, time.monotonic() - s)'",
                timeout_s=AWAY_S + 30,
            )
            shell.run(machine, f"sleep {AWAY_S}")
            assert not hard.done()
            assert not mounting.done()
        finally:
            hypervisor.call("post", f"{status}/resume")
        hard.result(60)
        assert mounting.result(60).exit_code == 0
    code, took_s = gave_up.stdout.split()
    assert int(code) == 5
    assert float(took_s) < AWAY_S
    assert share.run("print(open('waited').read())", on=1) == "written"
    share.run("os.remove('waited')")
    shell.check(machine, f"umount {soft} {late} && rmdir {soft} {late}")


def test_a_mount_outlives_the_service_that_made_it(share: Share) -> None:
    """It is kubelet that mounts the volumes of Pods, and that is restarted: a kernel's client would not notice."""
    machine, place = share.machines[0], f"{share.place}-of-a-service"
    command = f"mkdir -p {place} && mount -t nfs -o nfsvers=3,hard {share.source} {place}"
    unit = "systemd-run --quiet --unit=haproof-mounter --property=Type=oneshot --property=RemainAfterExit=yes"
    share.session.shell.check(machine, f"{unit} sh -c '{command}'", timeout_s=120)
    try:
        share.session.shell.check(machine, "systemctl stop haproof-mounter", timeout_s=60)
        assert share.session.shell.check(machine, f"ls -d {place}/wp-includes", timeout_s=60)
    finally:
        share.session.shell.check(machine, f"umount {place}; rmdir {place}", timeout_s=60)
