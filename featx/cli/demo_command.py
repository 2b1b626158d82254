"""``featx demo``."""

from __future__ import annotations

import click

from featx.cli.options import cache_option, common_options
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
    from featx.cli import fit_command, report_command
    from featx.extract import Plan, run_plan

    sizes = " ".join(str(k) for k in PER_CLASS)
    click.echo(f"$ featx extract --backbone {BACKBONE} --data {DATA}")
    plan = Plan(backbone=(BACKBONE,), data=DATA, cache_dir=cache_dir)
    run_plan(plan, reporter, tell=click.echo)
    click.echo(f"$ featx fit --clf svm --per-class {sizes} --data {DATA} --backbone {BACKBONE}")
    question = fit_command.Choice(
        clf=("svm",),
        per_class=PER_CLASS,
        data=(DATA,),
        backbone=(BACKBONE,),
        cache_dir=cache_dir,
        reports_dir=reports_dir,
    )
    status = fit_command.run(question, reporter)
    click.echo("$ featx report")
    report_command.run(reports_dir, reporter)
    return status
