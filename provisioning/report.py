"""How a bring-up looks on a terminal or in a log: one line an action."""

from collections.abc import Sequence

from rich.console import Console


class Terminal:
    """Prints each action as it is looked at and as it ends; plain lines where there is no terminal."""

    def __init__(self, console: Console, *, plan: bool = False) -> None:
        self._console = console
        self._plan = plan

    def begin(self, action: str) -> None:
        """Name the action, so that a long one is seen to be under way."""
        self._console.print(f"… {action}", highlight=False, markup=False, soft_wrap=True)

    def end(self, action: str, changes: Sequence[str], elapsed_s: float) -> None:
        """Tell what changed, or in a plan what would."""
        verb = "would change" if self._plan else "changed"
        told = f"{len(changes)} {verb}" if changes else "already so"
        self._console.print(f"✓ {action}: {told} ({elapsed_s:.1f} s)", highlight=False, markup=False, soft_wrap=True)
        if self._plan:
            for line in changes:
                self._console.print(f"    {line}", highlight=False, markup=False, soft_wrap=True)
