"""`python -m provisioning`: build the target of an environment, or show what would be built."""

from typing import Annotated

import typer
from rich.console import Console

from provisioning.report import Terminal
from provisioning.session import REFUSALS, open_session


def main(
    env: Annotated[str, typer.Option(help="Name of an environment (see environments/) or a TOML file.")] = "lab",
    plan: Annotated[bool, typer.Option("--plan", help="Say what would change; change nothing.")] = False,
) -> None:
    """Build the target that an environment describes; what is already so is left alone.

    A second run changes nothing. A run that failed or was stopped goes on from where it was.
    """
    console = Console(stderr=True)
    try:
        session = open_session(env)
        with session.state.locked("planning" if plan else "building"):
            outcome = session.build(Terminal(console, plan=plan), plan=plan)
    except REFUSALS as error:
        console.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        console.print("stopped; run the same command again to go on from here", style="red")
        raise typer.Exit(130) from error
    console.print(f"{outcome.changed} {'would change' if plan else 'changed'}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
