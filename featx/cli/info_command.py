"""``featx info``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from featx.cli.json_output import echo_json, json_option
from featx.cli.options import ListCommand, common_options, layout_options
from featx.cli.output import echo
from featx.errors import UsageError
from featx.progress import Reporter
from featx.text import size_text, visible

__all__ = ["command"]


@click.command(cls=ListCommand)
@click.argument("file", required=False)
@click.option("--data", help="Describe a data set instead: what  featx extract --data  takes.")
@click.option(
    "--preview", type=click.Path(path_type=Path), help="With --data: draw some images (.png)."
)
@layout_options
@json_option
@common_options
def command(
    file: str | None,
    data: str | None,
    preview: Path | None,
    as_json: bool,
    reporter: Reporter,
    **layout: Any,
) -> None:
    """Show what is in a cache FILE or URL, also partial, packed or sharded: how it was made."""
    if (file is None) == (data is None):
        raise UsageError("name a cache file, or a data set with --data (one of the two)")
    if data is not None:
        if as_json:
            raise UsageError("--json describes a cache file: name the file")
        from featx.cli.data_info import show_data
        from featx.sources import LayoutChoice

        show_data(data, LayoutChoice(**layout), preview, reporter)
    elif any(layout.values()):
        raise UsageError("the folders of splits and classes are those of a data set: give --data")
    elif preview is not None:
        raise UsageError("--preview draws the images of a data set: name it with --data")
    elif file is not None:
        from featx.sources.transfer import here

        _show_cache(Path(here(file, reporter)), as_json, reporter)


def _show_cache(file: Path, as_json: bool, reporter: Reporter) -> None:
    from featx.store import find_partials, read_summary

    if not file.exists() and (partials := find_partials(file)):
        summaries = [read_summary(partial) for partial in partials]
    else:
        summaries = [read_summary(file)]
    for summary in summaries:
        if as_json:
            echo_json(summary)
        else:
            _show(summary)


def _show(summary: Mapping[str, Any]) -> None:
    echo("\n".join(visible(line, keep="") for line in _lines(summary)))
    if summary.get("failed"):
        echo("images that could not be read:")
        for row, path, reason in summary["failed"]:
            echo(visible(f"  row {row}: {path}: {reason}", keep=""))


def _lines(summary: Mapping[str, Any]) -> Iterator[str]:
    n_rows, n_done = summary["n_rows"], summary["n_done"] + summary["n_failed"]
    state = "complete" if summary["complete"] else f"incomplete, {n_done:,} of {n_rows:,} rows done"
    yield f"{summary['path']}: {state}"
    yield f"features: {n_rows:,} x {summary['n_features']:,} {summary['dtype']}"
    yield f"size: {size_text(summary['file_bytes'])}"
    if "codec" in summary:
        yield from _packed_lines(summary)
    if "n_shards" in summary:
        yield f"shards: {summary['n_shards']:,} of {summary['shard_rows']:,} rows"
    if summary["n_classes"] is not None:
        yield f"classes: {summary['n_classes']}"
    yield f"images that could not be read: {summary['n_failed']:,}"
    yield f"fingerprint: {summary['fingerprint']}"
    for name, value in _flat(summary["meta"]):
        yield f"{name}: {value}"


def _packed_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    n_bytes = summary["unpacked_bytes"]
    ratio = n_bytes / summary["file_bytes"]
    yield f"packed: {summary['codec']}, {size_text(n_bytes)} when unpacked (ratio {ratio:.2f})"
    yield f"unpack: featx unpack {shlex.quote(str(summary['path']))}"


def _flat(meta: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in meta.items():
        if name == "identity":
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
