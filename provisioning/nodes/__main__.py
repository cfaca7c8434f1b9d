"""The process that prepares nodes: a `Job` as JSON on standard input, an `Answer` as JSON on standard output.

pyinfra works with gevent, which must patch the world before anything else is imported: hence a process.
"""

import gevent
from gevent import monkey

monkey.patch_all()

import logging  # noqa: E402
import os  # noqa: E402 - after the patch, all of them
import sys  # noqa: E402
from typing import Any  # noqa: E402

from pyinfra.api import BaseStateCallback, Config, Inventory, State  # noqa: E402
from pyinfra.api.connect import connect_all, disconnect_all  # noqa: E402
from pyinfra.api.exceptions import PyinfraError  # noqa: E402
from pyinfra.api.operations import run_ops  # noqa: E402
from pyinfra.api.state import StateStage  # noqa: E402
from pyinfra.context import ctx_host, ctx_state  # noqa: E402

from provisioning.nodes.job import Answer, Job, Node, NodeAnswer  # noqa: E402
from provisioning.nodes.roles import prepare  # noqa: E402


class Failures(BaseStateCallback):
    """Remembers, for each node, what it failed at."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.failed: dict[str, Any] = {}

    def host_connect_error(self, state: Any, host: Any, error: Any) -> None:
        """A node that cannot be entered."""
        self.answer.nodes[host.name].failed = "connecting by SSH"
        self.answer.nodes[host.name].output = str(error)

    def operation_host_error(self, state: Any, host: Any, op_hash: str, *_: Any, **__: Any) -> None:
        """An operation that failed; what its commands printed is there only afterwards, see `tell`."""
        operation = state.get_op_data_for_host(host, op_hash)
        self.answer.nodes[host.name].failed = name_of(operation)
        self.failed[host.name] = operation.operation_meta

    def tell(self) -> None:
        """Complete the answer by what failed operations printed last."""
        for name, meta in self.failed.items():
            if meta.is_complete():
                self.answer.nodes[name].output = "\n".join(meta.stdout_lines[-20:] + meta.stderr_lines[-20:])


def name_of(operation: Any) -> str:
    """An operation's own name; pyinfra counts operations per host and mixes the names of those of one number."""
    return str(operation.global_arguments["name"])


def end_with(lifeline: int) -> None:
    """End this process when the other end of `lifeline` is closed, that is, when its parent has died."""
    os.read(lifeline, 1)
    os._exit(1)


def main() -> None:
    """Read the job, do it, print the answer; the exit code is 0 whenever there is an answer."""
    # A thread outside of gevent: reading blocks it until the parent is gone.
    gevent.get_hub().threadpool.spawn(end_with, int(sys.argv[1]))
    job = Job.model_validate_json(sys.stdin.read())
    logging.getLogger("pyinfra").setLevel(logging.ERROR)
    answer = Answer(nodes={node.name: NodeAnswer() for node in job.nodes})
    data = {
        "ssh_user": job.user,
        "ssh_key": job.key,
        "ssh_known_hosts_file": job.known_hosts,
        "ssh_strict_host_key_checking": "yes",
        "ssh_look_for_keys": False,
        "ssh_allow_agent": False,
        # A machine that is still booting may start its SSH server anew just now.
        "ssh_connect_retries": 4,
        "ssh_connect_retry_min_delay": 1.0,
        "ssh_connect_retry_max_delay": 3.0,
        "_sudo": True,
    }
    names = [(node.name, {"ssh_hostname": node.address}) for node in job.nodes]
    state = State(Inventory((names, data)), Config(FAIL_PERCENT=100))
    failures = Failures(answer)
    state.add_callback_handler(failures)
    try:
        state.set_stage(StateStage.Connect)
        connect_all(state)
        state.set_stage(StateStage.Prepare)
        hosts = list(state.inventory.get_active_hosts())
        # Reading facts is waiting for SSH: all nodes at once.
        nodes = {node.name: node for node in job.nodes}
        with ctx_state.use(state):
            planned = [state.pool.spawn(prepare_on, host, job, nodes[host.name]) for host in hosts]
            gevent.joinall(planned, raise_error=True)
        for host in hosts:
            answer.nodes[host.name].changes = changes_of(state, host)
        if job.apply:
            state.set_stage(StateStage.Execute)
            run_ops(state)
        state.set_stage(StateStage.Disconnect)
        disconnect_all(state)
    except PyinfraError as error:
        for node in answer.nodes.values():
            if node.failed is None and not node.changes:
                node.failed, node.output = "preparing", f"{type(error).__name__}: {error}"
    failures.tell()
    print(answer.model_dump_json())  # noqa: T201 - the answer itself


def prepare_on(host: Any, job: Job, node: Node) -> None:
    """Plan the operations of one node; pyinfra keeps the host apart for each greenlet, the state for all."""
    with ctx_host.use(host):
        prepare(job, node)


def changes_of(state: State, host: Any) -> list[str]:
    """Names of the operations that would change `host`, in order."""
    names = []
    with ctx_state.use(state), ctx_host.use(host):
        for op_hash in state.get_op_order():
            if op_hash not in state.ops[host]:
                continue
            operation = state.get_op_data_for_host(host, op_hash)
            # Operations that only follow another's change are told by that other.
            if operation.global_arguments.get("_if"):
                continue
            if operation.operation_meta.will_change:
                names.append(name_of(operation))
    return names


if __name__ == "__main__":
    main()
