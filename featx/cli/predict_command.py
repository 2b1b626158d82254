"""``featx predict``."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from featx.atomic import part_of
from featx.cli.options import code_option, common_options
from featx.errors import SourceError, UsageError
from featx.progress import Reporter
from featx.text import visible

if TYPE_CHECKING:
    from featx.predict import Prediction, SavedModel

__all__ = ["command"]

# Writes file names that are not UTF-8 with their bytes unchanged.
_ODD_NAMES = "surrogateescape"


@click.command()
@click.option("--model", required=True, metavar="FILE", help="From  featx fit --save-models.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGES...")
@click.option("--output", metavar="FILE", help="A .csv or .json file.  [default: standard output]")
@click.option("--format", "form", type=click.Choice(["csv", "json"]), help="[default: csv]")
@click.option(
    "--top", type=click.IntRange(1), default=1, show_default=True, help="Classes for each image."
)
@click.option("--weights", metavar="FILE", help="The same weights, if they were moved.")
@click.option("--backbone", metavar="NAME", help="Its backbone, if that is a function of yours.")
@click.option("--batch-size", "-b", type=int, help="Images at once.  [default: 16, GPU 128]")
@click.option("--workers", "-j", type=int, help="Decoding processes; 0 for none.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@code_option
@common_options
def command(
    model: str,
    images: tuple[str, ...],
    output: str | None,
    form: str | None,
    top: int,
    reporter: Reporter,
    **engine: str | int | tuple[str, ...] | None,
) -> None:
    """Classify new IMAGES with a saved model.

    IMAGES are files, folders with everything below them, archives, tables of paths, or - for a
    pipe with one image, or with names of images, one a line. The backbone, weights and
    preprocessing are those that the model was fitted with. An image that
    cannot be decoded is a row with the reason as its status.
    """
    from featx.predict import iter_predictions, load_model, open_images, open_network
    from featx.predict.predictions import write_table

    form = form or _form(output)
    saved = load_model(model)
    sources = open_images(images, reporter=reporter)
    network = open_network(saved, reporter=reporter, **engine)  # type: ignore[arg-type]
    reporter.say(_describe(saved))

    def predictions() -> Generator[Prediction]:
        for prefix, source in sources:
            for row in iter_predictions(saved, network, source, top=top, reporter=reporter):
                named = replace(row, path=prefix + row.path)
                yield _shown(named) if output is None and sys.stdout.isatty() else named

    # `closing` ends the worker processes when the command is interrupted.
    with closing(predictions()) as rows, _stream(output) as stream:
        # Write nothing before the first images are classified.
        whole = itertools.chain([next(rows)], rows)
        n_images, n_failed = write_table(stream, form, saved, whole, top=top)
    if n_failed == n_images:
        raise SourceError(f"none of the {n_images:,} images could be read: see the status of each")
    if n_failed:
        reporter.warn(f"{n_failed:,} of {n_images:,} images could not be read: see their status")
    if output is not None:
        reporter.say(f"{output}: {n_images:,} images")


def _form(output: str | None) -> str:
    ending = "" if output is None else Path(output).suffix.lower()
    if output is not None and ending not in (".csv", ".json"):
        raise UsageError(f"--output {output}: end it in .csv or .json, or say --format csv|json")
    return ending[1:] or "csv"


def _shown(row: Prediction) -> Prediction:
    """Make names safe for a terminal, and numbers short; programs get them as they are."""
    return replace(
        row,
        path=visible(row.path, keep=""),
        classes=tuple(visible(name, keep="") for name in row.classes),
        scores=_short(row.scores),
        probabilities=row.probabilities and _short(row.probabilities),
    )


def _short(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in values)


def _describe(saved: SavedModel) -> str:
    from featx.predict.model import test_text

    meta, features = saved.meta, saved.meta["features"]
    return (
        f"{meta['head']} on {features.get('backbone')} {features.get('point', {}).get('layer')}, "
        f"{len(saved.classes_)} classes, fitted on {meta['train'].get('data')}, "
        f"{meta['train'].get('per_class')} per class; "
        f"accuracy on its test images ({meta['test'].get('split')}) then: {test_text(meta)}"
    )


@contextmanager
def _stream(output: str | None) -> Iterator[TextIO]:
    """Open standard output, or a file that gets its name when it is complete."""
    if output is None:
        stream = io.TextIOWrapper(sys.stdout.buffer, "utf-8", _ODD_NAMES, newline="")
        try:
            yield stream
        finally:
            stream.flush()
            stream.detach()
        return
    path = Path(output)
    if not path.parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise UsageError(f"--output {output}: it is not a file; choose another name")
    with (
        part_of(path) as part,
        part.open("w", encoding="utf-8", errors=_ODD_NAMES, newline="") as stream,
    ):
        yield stream
