"""The lab's daemon: enters the sealed world, keeps its servers and guests running, and leaves nothing behind."""

import json
import logging
import logging.handlers
import os
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab import certificates, credentials, edge, leftovers, namespace, network, sysctl
from lab.api import server
from lab.api.app import create_app
from lab.api.auth import Auth
from lab.cgroup import Cgroup, Membership
from lab.child import Child
from lab.driver import DriverError
from lab.durable import write_bytes
from lab.guest import LxcDriver
from lab.hypervisor import Hypervisor
from lab.lock import Lock
from lab.mirror.images import registry_config
from lab.paths import Paths
from provisioning.poll import poll

ADDRESS = IPv4Address("172.31.0.1")
TOKEN = "root@pam!haproof"
API_PORT, MIRROR_PORT, REGISTRY_PORT = 8006, 80, 5000
SHUTDOWN_TIMEOUT_S = 15.0
END_TIMEOUT_S = 10.0
# Where visitors are; it leads wherever they get from there, which is to the edge.
VISITORS_PROXY = f"""\
Listen {edge.VISITORS_ADDRESS}
Port {edge.VISITORS_PORT}
Timeout 120
MaxClients 100
LogLevel Warning
DisableViaHeader Yes
"""
LOG_BYTES = 4 * 2**20


def open_log(paths: Paths) -> None:
    """Write everything that is logged to state/lab.log, one JSON object a line; two older files are kept."""
    file = paths.state / "lab.log"
    handler = logging.handlers.RotatingFileHandler(file, maxBytes=LOG_BYTES, backupCount=2)
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def ensure_ssh_key(path: Path) -> None:
    """Make the key pair with which a runner enters the lab's guests, once."""
    if path.exists():
        return
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    path.with_suffix(".pub").write_bytes(public + b" haproof-lab\n")
    write_bytes(path, private, mode=0o600)


def _listen(port: int, address: str = str(ADDRESS)) -> socket.socket:
    return socket.create_server((address, port), backlog=128)


class Supervisor:
    """One run of the lab, from lock to last trace. Use `serve`."""

    def __init__(self, paths: Paths, folder: Path, content: Path) -> None:
        self._paths = paths
        self._folder = folder
        self._content = content
        self._cgroup = Cgroup(paths.run.name)
        self._stop = threading.Event()
        self._log: Any = structlog.get_logger()

    def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises LabBusyError, and OSError when the machine refuses something."""
        paths = self._paths
        lock = Lock(paths, self._folder)
        paths.state.mkdir(parents=True, exist_ok=True)
        open_log(paths)
        cleared = leftovers.clear(paths, keep_lock=True)
        lock.announce()
        if cleared.processes:
            self._log.info("cleared a dead lab", what=str(cleared), was=str(lock.previous))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        with ExitStack() as after:
            after.callback(lock.release)
            outside = os.open("/proc/self/ns/net", os.O_RDONLY)
            before = Membership.of(os.getpid())
            after.callback(self._leave, outside, before)
            sysctl.apply(paths.run / "sysctl.json")
            self._cgroup.child("daemon").join(os.getpid())
            scratch = paths.run / "scratch"
            scratch.mkdir()
            namespace.enter(scratch)
            network.build()
            visitors = network.visitors()
            after.callback(os.close, visitors)
            self._work(outside, visitors)
        self._log.info("down")

    def _leave(self, outside: int, before: Membership) -> None:
        """Put everything back, first of all this process itself."""
        namespace.join_network(outside)
        before.restore(os.getpid())
        leftovers.clear(self._paths, keep_lock=True)

    def _work(self, outside: int, visitors: int) -> None:
        paths = self._paths
        lxcfs = paths.run / "lxcfs"
        lxcfs.mkdir()
        ensure_ssh_key(paths.state / "id_ed25519")
        credentials.ensure(paths.state)
        registry = paths.run / "registry.json"
        served = registry_config(self._content / "registry", f"{ADDRESS}:{REGISTRY_PORT}", read_only=True)
        registry.write_text(json.dumps(served))  # JSON is YAML
        with closing(_listen(API_PORT)) as api, closing(_listen(MIRROR_PORT)) as mirror, ExitStack() as children:
            edges = [
                children.enter_context(closing(_listen(port, edge.ADDRESS)))
                for port in (edge.PUBLIC_PORT, edge.API_PORT, edge.TUNNEL_PORT)
            ]
            edge_fds = [listening.fileno() for listening in edges]
            proxy = paths.run / "visitors.conf"
            proxy.write_text(VISITORS_PROXY)
            into_machine = ["nsenter", f"--net=/proc/self/fd/{outside}", "--"]
            arguments = ["--fd", str(mirror.fileno()), "--content", str(self._content)]
            for child in (
                Child(
                    "lxcfs",
                    ["lxcfs", "-f", "-p", str(paths.run / "lxcfs.pid"), str(lxcfs)],
                    # What a dead one leaves mounted would be in the way.
                    prepare=partial(namespace.unmount_all, lxcfs),
                ),
                # The mirror fetches through the machine's network and serves inside the lab's.
                Child(
                    "mirror",
                    [*into_machine, sys.executable, "-m", "lab.mirror", "serve", *arguments],
                    descriptors=(outside, mirror.fileno()),
                ),
                Child(
                    "visitors",
                    ["nsenter", f"--net=/proc/self/fd/{visitors}", "--", "tinyproxy", "-d", "-c", str(proxy)],
                    descriptors=(visitors,),
                    another_machine=True,
                ),
                Child("registry", ["docker-registry", "serve", str(registry)]),
                Child(
                    "edge",
                    [
                        sys.executable,
                        "-m",
                        "lab.edge",
                        "serve",
                        "--state",
                        str(paths.state),
                        "--fds",
                        *map(str, edge_fds),
                    ],
                    descriptors=edge_fds,
                    another_machine=True,
                ),
            ):
                child.start()
                children.callback(child.end)
            poll("lxcfs", (lxcfs / "proc/meminfo").exists, timeout_s=10, interval_s=0.05)
            # The environment refers to it: who finds the lab ready must find this too.
            authority = paths.state / "edge" / certificates.CA_NAME
            poll("the edge's certificate", authority.exists, timeout_s=30, interval_s=0.05)
            driver = LxcDriver(paths, lxcfs)
            children.callback(self._end_guests, driver)
            self._serve(driver, api)

    def _serve(self, driver: LxcDriver, listening: socket.socket) -> None:
        hypervisor = Hypervisor(self._paths, driver)
        certificate, key, _ = certificates.ensure(self._paths.state, [str(ADDRESS)])
        auth = Auth({TOKEN: certificates.ensure_token(self._paths.state)})
        api = server.serve(create_app(hypervisor, auth), listening, certificate, key)
        thread = threading.Thread(target=api.run, kwargs={"sockets": [listening]}, name="api", daemon=True)
        thread.start()
        try:
            poll("the API", lambda: api.started, timeout_s=30, interval_s=0.05)
            outcome = hypervisor.autostart()
            # Not before: who waits for the lab would race with it for the machines.
            (self._paths.run / "ready").touch()
            self._log.info("up", folder=str(self._folder), autostarted=outcome)
            while not self._stop.wait(1.0):
                if not thread.is_alive():
                    raise RuntimeError("the API's server ended by itself; its last words are above in this log")
        finally:
            self._log.info("going down")
            hypervisor.close()
            api.should_exit = True
            thread.join(END_TIMEOUT_S)

    def _end_guests(self, driver: LxcDriver) -> None:
        """Shut every guest down at once; the power is cut for those that take too long."""

        def end(vmid: int) -> None:
            try:
                driver.shutdown(vmid, SHUTDOWN_TIMEOUT_S)
            except DriverError as error:
                self._log.info("cutting the power", guest=vmid, cause=str(error))
                driver.stop(vmid)

        guests = driver.running()
        with ThreadPoolExecutor(max_workers=max(1, len(guests))) as pool:
            list(pool.map(end, guests))


def serve(paths: Paths, folder: Path, content: Path) -> None:
    """Run the lab in this process; raises LabBusyError when one is up.

    `folder` is the checkout, `content` the directory that `lab.mirror.content.build` made.
    """
    Supervisor(paths, folder, content).run()
