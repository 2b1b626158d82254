"""What ``featx info --data`` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from featx.cli.output import echo
from featx.progress import Reporter
from featx.sources import LayoutChoice, Source, open_data
from featx.sources.look import SourceSummary, find_dim, preview, summarise
from featx.sources.splits import describe_choice
from featx.text import text_table, visible

__all__ = ["show_data"]

_MOST_CLASSES = 100


def show_data(spec: str, layout: LayoutChoice, picture: Path | None, reporter: Reporter) -> None:
    """Print classes, counts, sizes and splits of a data set; draw some of its images."""
    from featx.sheet import save_sheet

    splits = open_data(spec, layout=layout, reporter=reporter)
    summaries = [summarise(source) for source in splits.values()]
    echo("\n".join(_lines(next(iter(splits.values())), summaries)))
    for source, summary in zip(splits.values(), summaries, strict=True):
        if dim := find_dim(source, summary):
            reporter.warn(f"{summary.split}, of those looked at: {dim}")
    if picture is not None:
        save_sheet(preview(splits), picture)
        echo(f"some of its images: {picture}")


def _lines(source: Source, summaries: Sequence[SourceSummary]) -> Iterator[str]:
    n_classes = len(source.class_names)
    counts = ", ".join(f"{summary.split} {summary.n_images:,}" for summary in summaries)
    yield f"{source.name}: {n_classes:,} classes, images: {counts}"
    yield f"  {describe_choice([summary.split for summary in summaries])}"
    for summary in summaries:
        yield _headers(summary)
        for path, reason in list(summary.bad.items())[:5]:
            yield visible(f"    {path}: {reason}", keep="")
    labelled = [summary for summary in summaries if summary.n_images > summary.n_unlabelled]
    header = ("class", *(item.split for item in labelled))
    rows = [
        (name, *(f"{item.per_class[name]:,}" for item in labelled))
        for name in source.class_names[:_MOST_CLASSES]
    ]
    yield text_table(header, rows, {"class"}, has_rule=False)
    if n_classes > _MOST_CLASSES:
        yield f"... and {n_classes - _MOST_CLASSES:,} more classes"


def _headers(summary: SourceSummary) -> str:
    parts = [", ".join(summary.kinds) or "no image can be read", summary.describe_sizes()]
    if good := sum(summary.kinds.values()):
        parts.append(f"{summary.n_bytes / good / 1e3:,.1f} kB each")
    if summary.bad:
        parts.append(f"{len(summary.bad):,} that cannot be read")
    if summary.n_unlabelled:
        parts.append(f"{summary.n_unlabelled:,} of the split without a label")
    looked = f"of {summary.n_measured:,}" if summary.n_measured < summary.n_images else "of all"
    return f"  {summary.split}, headers {looked}: {', '.join(filter(None, parts))}"
