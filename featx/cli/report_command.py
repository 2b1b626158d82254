"""``featx report``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featx.cli.options import ListCommand, common_options, list_option, reports_option
from featx.progress import Reporter
from featx.text import count_of

if TYPE_CHECKING:
    from featx.evaluate.table import Lines

__all__ = ["command"]


@click.command(cls=ListCommand)
@list_option("--data", help="Only results on these data sets.")
@click.option(
    "--format",
    "-f",
    "form",
    type=click.Choice(["page", "md", "latex", "csv", "html"]),
    default="page",
    show_default=True,
    help="A page, or a table for a document, which is printed.",
)
@click.option(
    "--classes", metavar="SYSTEM", help="A table of each class's scores of a system, in its place."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of the page.  [default: REPORTS/index.html]",
)
@click.option("--pictures/--no-pictures", default=True, help="Thumbnails of wrong images.")
@reports_option
@common_options
def command(
    data: tuple[str, ...],
    form: str,
    classes: str | None,
    out: Path | None,
    pictures: bool,
    reports_dir: str,
    reporter: Reporter,
) -> None:
    """Make a page of all results, or a table for a paper.

    The page is one file, REPORTS/index.html, that opens in a browser from disk and needs no
    network. A page that is there is replaced. It needs  pip install 'featx[report]'; the tables
    do not.
    """
    from featx.evaluate.table import read_lines
    from featx.report.tables import format_lines

    lines = read_lines(reports_dir, data=data, reporter=reporter)
    if classes is not None:
        form = "md" if form == "page" else form
        click.echo("\n".join(_class_tables(lines, classes, form, reporter)), nl=False)
    elif form == "page":
        from featx.report.page import write_page

        path = out or Path(reports_dir) / "index.html"
        write_page(lines, path, pictures=pictures, reporter=reporter)
        click.echo(f"{count_of(len(lines.fits), 'fit')}: open {path} in a browser")
    else:
        click.echo(format_lines(lines, form), nl=False)


def _class_tables(lines: Lines, system: str, form: str, reporter: Reporter) -> Iterator[str]:
    """Write a table for each data set and number of images that the system was fitted on."""
    from featx.errors import unknown_name
    from featx.evaluate import ResultsFolder
    from featx.report.details import details_of, read_fits
    from featx.report.tables import class_table

    chosen = lines.frame[lines.frame["system"] == system]
    if chosen.empty:
        raise unknown_name("system", system, lines.frame["system"].unique())
    folder = ResultsFolder(lines.folder, reporter)
    for _, line in chosen.iterrows():
        fits = read_fits(folder, lines.files[line["id"]], reporter)
        if rows := details_of(fits).get("classes") if fits else None:
            title = f"{line['data']}, {system}, {line['per class']} per class, all draws together"
            yield class_table(rows, form, title)
