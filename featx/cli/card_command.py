"""``featx card``."""

from __future__ import annotations

from pathlib import Path

import click

from featx.cli.options import common_options
from featx.progress import Reporter

__all__ = ["command"]


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@common_options
def command(model: Path, reporter: Reporter) -> None:
    """Print a model card of a saved MODEL, as the Hugging Face Hub reads it.

    It says what the file itself records: backbone, preprocessing, training images, test accuracy.
    """
    from featx.predict import load_model
    from featx.predict.card import model_card

    click.echo(model_card(load_model(model)), nl=False)
