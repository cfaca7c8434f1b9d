"""`python -m lab.mirror`: build what the mirror serves, or serve it."""

import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from lab.cache import BuildError, Cache, apt_archive
from lab.mirror import apt, versions
from lab.mirror.content import build as build_content
from lab.mirror.server import create_app
from lab.mirror.server import serve as serve_app
from lab.paths import Paths

app = typer.Typer(help="What the lab's nodes fetch: built once, served inside the lab.", no_args_is_help=True)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")  # one write: builds run side by side


@app.command()
def build() -> None:
    """Build everything that is not in the cache yet; says what is being built."""
    try:
        build_content(_say)
    except BuildError as error:
        _say(str(error))
        raise typer.Exit(1) from error


@app.command()
def serve(
    fd: Annotated[int, typer.Option(help="An inherited socket that listens already.")],
    content: Annotated[Path, typer.Option(help="What `build` made.", exists=True)],
) -> None:
    """Serve the content on a socket made by the parent process."""
    paths = Paths.default()
    with socket.socket(fileno=fd) as listening, Cache(content.parent).using(content):
        serve_app(create_app(content, apt.sources(versions.DEBIAN), apt_archive(paths)), listening)


if __name__ == "__main__":
    app()
