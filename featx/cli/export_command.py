"""``featx export``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from featx.cli.options import common_options
from featx.cli.output import echo
from featx.progress import Reporter
from featx.text import count_of, size_text

__all__ = ["command"]


class _Rows(click.ParamType):  # type: ignore[type-arg]
    """Rows as Python writes a slice: ``START:STOP`` or ``START:STOP:STEP``."""

    name = "START:STOP"

    def convert(self, value: Any, param: Any, ctx: Any) -> slice:
        """Read one word."""
        if isinstance(value, slice):
            return value
        if not re.fullmatch(r"\d*:\d*(:0*[1-9]\d*)?", value):
            self.fail(f"{value!r} is not START:STOP or START:STOP:STEP, as in 0:1000", param, ctx)
        return slice(*(int(part) if part else None for part in value.split(":")))


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "-f",
    "format_",
    type=click.Choice(["npz", "parquet", "projector"]),
    required=True,
    help="What to write; parquet needs the extra parquet.",
)
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="File, or folder of the projector."
)
@click.option("--rows", type=_Rows(), help="Only these rows, the last excluded.")
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32", "float64"]),
    help="Of the features in npz and parquet: float32 by default; float16 as most caches store "
    "them, half as large, which overflows in sums.",
)
@click.option("--keep-failed", is_flag=True, help="Also images that could not be read, as NaN.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@common_options
def command(
    file: Path,
    format_: str,
    output: Path | None,
    reporter: Reporter,
    **choices: Any,
) -> None:
    """Write the features of the cache FILE for other programs.

    npz for NumPy, parquet for pandas and databases, projector for TensorBoard
    (a folder; give its path to  tensorboard --logdir).
    """
    from featx.export import export_cache

    report = export_cache(file, format_, output, reporter=reporter, **choices)
    left_out = (
        f", {report.n_left_out:,} left out because their images could not be read"
        if report.n_left_out
        else ""
    )
    echo(f"{report.path}: {count_of(report.n_rows, 'row')}, {size_text(report.n_bytes)}{left_out}")
