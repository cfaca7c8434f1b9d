"""The connector's end of the tunnel, as it lies on its machine: the unit and the file with its token."""

import hashlib
from dataclasses import dataclass

from environments.model import Environment, Machine, Role
from provisioning.ssh import Shell

UNIT = "cloudflared"
CREDENTIALS = "/etc/cloudflared/environment"


@dataclass(frozen=True)
class Connector:
    """The machine that dials out, so that no port of it is open to the public."""

    environment: Environment
    shell: Shell

    @property
    def machine(self) -> Machine:
        """The environment's first tunnel machine: the document has one."""
        return self.environment.with_role(Role.TUNNEL)[0]

    def holds(self, token: str) -> bool:
        """Whether the machine has this token, by its digest; raises Unreachable."""
        told = self.shell.run(self.machine, f"sha256sum {CREDENTIALS}").stdout
        return told.partition(" ")[0] == hashlib.sha256(content(token).encode()).hexdigest()

    def running(self) -> bool:
        """Whether the unit runs, and will after a reboot; raises Unreachable."""
        script = f"systemctl is-active --quiet {UNIT} && systemctl is-enabled --quiet {UNIT}"
        return self.shell.run(self.machine, script).exit_code == 0

    def start(self, token: str) -> None:
        """Give it the token, by standard input, and start it anew; raises ActionFailed."""
        script = (
            f"umask 077 && cat > {CREDENTIALS}.new && mv {CREDENTIALS}.new {CREDENTIALS} && "
            f"systemctl enable --quiet {UNIT} && systemctl restart {UNIT}"
        )
        self.shell.check(self.machine, script, stdin=content(token))

    def journal(self) -> str:
        """The unit's last lines; raises Unreachable."""
        return self.shell.run(self.machine, f"journalctl -u {UNIT} -n 5 --no-pager -o cat").stdout


def content(token: str) -> str:
    """The file with the token, as systemd reads it. Pure."""
    return f"TUNNEL_TOKEN={token}\n"
