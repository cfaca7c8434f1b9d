"""Permission to break a target: its environment gives it, and whoever starts a run repeats its name."""

from environments.model import Environment


def refusal(environment: Environment, named: str) -> str:
    """Why a target may not be broken by somebody who said `--chaos named`; empty where it may. Pure."""
    if not environment.chaos.allowed:
        return f"chaos.allowed is false in the environment {environment.name}"
    if not named:
        return f"it breaks the target; permit it by repeating the environment's name: --chaos {environment.name}"
    if named != environment.name:
        return f"--chaos says “{named}”, and the environment is {environment.name}: --chaos {environment.name}"
    return ""
