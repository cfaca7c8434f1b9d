"""The power of machines that there are not."""


class Powers:
    """A hypervisor that has nothing but power; `states` by the machines' ids."""

    def __init__(self, states: dict[int, str]) -> None:
        self.states = states

    def power(self, vmid: int) -> str:
        """`running`, `stopped` or `paused`."""
        return self.states[vmid]

    def start(self, vmid: int) -> None:
        """From stopped only, as Proxmox VE."""
        assert self.states[vmid] == "stopped"
        self.states[vmid] = "running"

    def resume(self, vmid: int) -> None:
        """From paused only."""
        assert self.states[vmid] == "paused"
        self.states[vmid] = "running"
