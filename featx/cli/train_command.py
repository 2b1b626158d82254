"""``featx train``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from featx.cli.options import (
    DATA_HELP,
    INPUT_SIZE,
    PER_CLASS,
    ListCommand,
    bits_option,
    class_options,
    code_option,
    common_options,
    layout_options,
    list_option,
    reports_option,
    test_split_option,
)
from featx.cli.output import echo
from featx.progress import Reporter

__all__ = ["command"]

F = TypeVar("F", bound=Callable[..., Any])


def _option(*names: str, default: Any, **settings: Any) -> Callable[[F], F]:
    """Option with a default, which gives its type and which the help shows."""
    return click.option(*names, default=default, show_default=True, **settings)


@click.command(cls=ListCommand)
@list_option(
    "--network",
    required=True,
    help="Networks from scratch, with settings as 'auto-cnn(blocks=3)', or backbones.",
)
@_option("--data", default="cifar10", help=DATA_HELP)
@layout_options
@class_options
@list_option(
    "--per-class", type=PER_CLASS, default=("all",), show_default=True, help="Images per class."
)
@_option("--repeats", default=1, help="Draws of the subset.")
@_option("--seed", default=0, help="Seed of the first draw.")
@click.option("--cache-per-class", type=PER_CLASS, help="Draw from a pool of N images a class.")
@click.option("--test-per-class", type=PER_CLASS, help="Test on M images a class.")
@_option("--holdout", default=0.2, help="Share held out if there is no test split.")
@test_split_option
@_option(
    "--on-leak",
    type=click.Choice(["warn", "drop", "raise"]),
    default="warn",
    help="If training images are copies of test images: warn, leave them out, or stop.",
)
@click.option("--weights", help="Weights of a backbone: a tag, a file, or random.")
@click.option("--weights-key", help="Entry of the file, as in featx extract.")
@click.option("--layer", help="Where a backbone is cut off.  [default: the last feature map]")
@click.option(
    "--top", help="Put on a backbone: linear, 'flatten(hidden=512,256 dropout=0.2)', 'gap(...)'."
)
@_option("--freeze", default="none", help="none, half, all, N layers, or up to a LAYER.")
@click.option("--unfreeze-after", type=int, help="Epochs after which all layers learn.")
@click.option("--input-size", type=INPUT_SIZE, help="[default: that of weights or images]")
@click.option("--normalise", help="half-range, cifar, imagenet, divide-only or -twice.")
@bits_option
@list_option("--augment", help="flip rotation=0.1 zoom=0.1 crop=4.")
@_option("--optimizer", default="Adam", help="SGD, Nesterov, Adam, Adamax, RMSprop or AdamW.")
@_option("--lr", default=0.001, help="Learning rate.")
@click.option("--backbone-lr", type=float, help="Learning rate below the top.  [default: --lr]")
@click.option("--momentum", type=float, help="Momentum of SGD, Nesterov and RMSprop.")
@_option("--weight-decay", default=0.0, help="As in torch.")
@_option("--scheduler", default="none", help="none, step, cosine or plateau.")
@_option("--step-size", default=5, help="Epochs of the scheduler.")
@_option("--gamma", default=0.1, help="Factor of the scheduler.")
@_option("--loss", default="cross-entropy", help="cross-entropy or binary-cross-entropy.")
@_option("--epochs", default=30, help="Most epochs.")
@_option(
    "--patience",
    default=10,
    help="Epochs without a lower validation loss before training stops; 0: never.",
)
@_option("--validation", default=0.1, help="Share of each class for validation, not fitted.")
@_option("--batch-size", "-b", default=64, help="Images in a step.")
@_option("--precision", default="fp32", help="fp32, bf16, fp16 or auto.")
@_option("--channels-last/--no-channels-last", default=True, help="Memory order of images.")
@_option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
@click.option("--workers", "-j", type=int, help="Decoding processes; 0 for none.")
@click.option(
    "--image-memory-gb", type=float, help="For decoded images.  [default: half of what is free]"
)
@_option("--search", default=0, help="Number of random settings to try first.")
@click.option("--save", is_flag=True, help="Write trained networks to files, usable as backbones.")
@click.option("--plot", is_flag=True, help="Draw the curves.")
@click.option("--refit", is_flag=True, help="Train again what reports/ has an answer to.")
@reports_option
@code_option
@common_options
def command(reporter: Reporter, network: tuple[str, ...], **options: Any) -> None:
    """Train networks end to end, from scratch or from a backbone, on few images or all.

    Uses the same draws and test images as  featx fit. Prints one table. Each training adds a row
    to reports/results.csv, a JSON file in reports/fits/ and its curves in reports/curves/. The
    same command continues an interrupted training after its last complete epoch.
    """
    from featx.train import TrainPlan

    options["allow_code"] += network
    plans = [TrainPlan(network=name, **options) for name in network]
    for plan in plans:
        plan.check_words()
    from featx.evaluate import format_table, summarise
    from featx.train import run_train

    results = [result for plan in plans for result in run_train(plan, reporter, echo)]
    echo(format_table(summarise([result.fit for result in results])))
    n_known = sum(result.is_known for result in results)
    known = f"{n_known} trainings answered, " if n_known else ""
    folder = Path(options["reports_dir"])
    echo(f"{known}{len(results) - n_known} added to {folder / 'results.csv'}")
