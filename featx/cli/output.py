"""What commands print for people."""

from __future__ import annotations

import click

from featx.text import visible

__all__ = ["echo"]


def echo(text: str, *, err: bool = False) -> None:
    """Print lines in which no name from the data can do anything to a terminal."""
    click.echo(visible(text), err=err)
