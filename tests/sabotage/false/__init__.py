"""Parts of the suite that lie, each a plugin for pytest's -p that takes the place of the honest one."""

from chaos import drill, lifeline


def swap(honest: str, false: str) -> None:
    """Let drills start the process `false` where they mean `honest`; both are names of modules."""
    drill.helper = lambda module, file: lifeline.helper(  # type: ignore[attr-defined]
        false if module == honest else module, file
    )
