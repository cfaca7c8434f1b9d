"""/nodes/{node}/qemu/{vmid}/agent: commands inside a guest."""

from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import Field

from lab.api import shapes
from lab.api.answers import Data
from lab.api.calls import VM
from lab.api.parameters import AtVm, Integer, Reads, Strings
from lab.hypervisor import Hypervisor


class Exec(AtVm):
    """POST …/agent/exec."""

    command: Strings
    input_data: Annotated[str, Field(max_length=65536)] = Field(default="", alias="input-data")


class ExecStatus(AtVm):
    """GET …/agent/exec-status."""

    pid: Integer


def add_calls(app: FastAPI, hypervisor: Hypervisor) -> None:
    """Add these calls to `app`."""
    agent = hypervisor.agent

    @app.post(f"{VM}/agent/ping")
    def ping(asked: Annotated[AtVm, Depends(Reads(AtVm))]) -> Data:
        agent.ping(asked.vmid)
        return Data({"result": {}})

    @app.post(f"{VM}/agent/exec")
    def execute(asked: Annotated[Exec, Depends(Reads(Exec))]) -> Data:
        return Data({"pid": agent.start(asked.vmid, asked.command, asked.input_data.encode())})

    @app.get(f"{VM}/agent/exec-status")
    def exec_status(asked: Annotated[ExecStatus, Depends(Reads(ExecStatus))]) -> Data:
        result = agent.result(asked.vmid, asked.pid)
        if result is None:
            return Data({"exited": 0})
        answer: dict[str, object] = {"exited": 1, "exitcode": result.exit_code}
        if result.stdout:
            answer["out-data"] = result.stdout.decode(errors="replace")
        if result.stderr:
            answer["err-data"] = result.stderr.decode(errors="replace")
        return Data(answer)

    @app.get(f"{VM}/agent/network-get-interfaces")
    def interfaces(asked: Annotated[AtVm, Depends(Reads(AtVm))]) -> Data:
        return Data({"result": [shapes.interface(one) for one in agent.interfaces(asked.vmid)]})

    @app.get(f"{VM}/agent/get-osinfo")
    def os_info(asked: Annotated[AtVm, Depends(Reads(AtVm))]) -> Data:
        return Data({"result": shapes.os_info(agent.os_release(asked.vmid), agent.kernel(asked.vmid))})

    @app.get(f"{VM}/agent/get-host-name")
    def host_name(asked: Annotated[AtVm, Depends(Reads(AtVm))]) -> Data:
        return Data({"result": {"host-name": agent.host_name(asked.vmid)}})
