"""``featx demo``."""

from __future__ import annotations

import click

from featx.cli.options import cache_option, common_options
from featx.cli.output import echo
from featx.progress import Reporter

__all__ = ["command"]

BACKBONE, DATA, PER_CLASS = "efficientnet_lite0", "digits", (10, 50, 100)


@click.command()
@cache_option
@click.option("--reports", "reports_dir", default="reports", show_default=True)
@common_options
def command(cache_dir: str, reports_dir: str, reporter: Reporter) -> int:
    """Extract and fit on handwritten digits, offline, in a minute or two.

    Real images (scikit-learn's digits) through a real ImageNet-trained network
    (EfficientNet-Lite0, from the extra featx[demo]), then a linear SVM at 10, 50
    and 100 images per class, and a page of the results: the same three commands
    that you would type.
    """
    from featx.cli import extract_command, fit_command, report_command

    sizes = [str(k) for k in PER_CLASS]
    what = ["--backbone", BACKBONE, "--data", DATA]
    cache, reports = ["--cache", cache_dir], ["--reports", reports_dir]
    fitted = ["--clf", "svm", "--per-class", *sizes, *what]
    quiet = ["--quiet"] if reporter.quiet else []
    status = 0
    for name, called, typed, folders in (
        ("extract", extract_command.command, [*what, "--fast"], cache),
        ("fit", fit_command.command, fitted, cache + reports),
        ("report", report_command.command, [], reports),
    ):
        echo(" ".join(["$ featx", name, *typed]))
        status = called.main([*typed, *folders, *quiet], standalone_mode=False) or status
    return status
