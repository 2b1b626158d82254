"""``featx train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from featx.progress import Reporter

__all__ = ["command"]


@click.command(cls=ListCommand)
@list_option(
    "--network",
    required=True,
    help="From scratch (featx.networks, with settings 'auto-cnn(blocks=3)'), or backbones.",
)
@click.option("--data", default="cifar10", show_default=True, help=DATA_HELP)
@layout_options
@class_options
@list_option(
    "--per-class", type=PER_CLASS, default=("all",), show_default=True, help="Images a class."
)
@click.option("--repeats", type=int, default=1, show_default=True, help="Draws of the subset.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first draw.")
@click.option("--cache-per-class", type=int, help="Draw from a pool of N training images a class.")
@click.option("--test-per-class", type=int, help="Test on M images a class.")
@click.option(
    "--holdout",
    type=float,
    default=0.2,
    show_default=True,
    help="Share held out where there is no test split.",
)
@test_split_option
@click.option(
    "--on-leak",
    type=click.Choice(["warn", "drop", "raise"]),
    default="warn",
    show_default=True,
    help="Where a test image is in the train split: tell, leave it out of training, or stop.",
)
@click.option("--weights", help="Of a backbone: tag, file, or random.")
@click.option("--weights-key", help="Entry of the file, as in featx extract.")
@click.option("--layer", help="Where a backbone is cut.  [default: the last feature map]")
@click.option(
    "--top", help="Put on a backbone: linear, 'flatten(hidden=512,256 dropout=0.2)', 'gap(...)'."
)
@click.option(
    "--freeze", default="none", show_default=True, help="none, half, all, N layers, or a LAYER."
)
@click.option("--unfreeze-after", type=int, help="Epochs after which everything learns.")
@click.option("--input-size", type=INPUT_SIZE, help="[default: the weights', or the images' own]")
@click.option("--normalise", help="half-range, cifar, imagenet, divide-only or -twice.")
@bits_option
@list_option("--augment", help="flip rotation=0.1 zoom=0.1 crop=4.")
@click.option(
    "--optimizer",
    default="Adam",
    show_default=True,
    help="SGD, Nesterov, Adam, Adamax, RMSprop or AdamW.",
)
@click.option("--lr", type=float, default=0.001, show_default=True, help="Learning rate.")
@click.option("--backbone-lr", type=float, help="That of the backbone below the top.")
@click.option("--momentum", type=float, help="Of SGD, Nesterov and RMSprop.")
@click.option("--weight-decay", type=float, default=0.0, show_default=True, help="As torch's.")
@click.option(
    "--scheduler", default="none", show_default=True, help="none, step, cosine or plateau."
)
@click.option("--step-size", type=int, default=5, show_default=True, help="Epochs, of scheduler.")
@click.option("--gamma", type=float, default=0.1, show_default=True, help="Factor, of scheduler.")
@click.option(
    "--loss",
    default="cross-entropy",
    show_default=True,
    help="cross-entropy or binary-cross-entropy.",
)
@click.option("--epochs", type=int, default=30, show_default=True, help="Most epochs.")
@click.option(
    "--patience",
    type=int,
    default=10,
    show_default=True,
    help="Epochs without a better validation loss before the best weights come back; 0: never.",
)
@click.option(
    "--validation",
    type=float,
    default=0.1,
    show_default=True,
    help="Share of each class of the subset that is watched, not fitted.",
)
@click.option("--batch-size", "-b", type=int, default=64, show_default=True, help="Images a step.")
@click.option("--precision", default="fp32", show_default=True, help="fp32, bf16, fp16 or auto.")
@click.option(
    "--channels-last/--no-channels-last",
    default=True,
    show_default=True,
    help="Memory order of images.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--workers", "-j", type=int, help="Decoding processes; 0 for none.")
@click.option(
    "--image-memory-gb", type=float, help="For decoded images.  [default: half of what is free]"
)
@click.option(
    "--search", type=int, default=0, show_default=True, help="Settings to draw at random first."
)
@click.option("--save", is_flag=True, help="Keep trained networks as files: backbones at once.")
@click.option("--plot", is_flag=True, help="Draw the curves.")
@click.option("--refit", is_flag=True, help="Train again what reports/ has an answer to.")
@reports_option
@code_option
@common_options
def command(reporter: Reporter, network: tuple[str, ...], **options: Any) -> None:
    """Train networks end to end, from scratch or from a backbone, on few images or all.

    On the same draws and test images as  featx fit. Prints one table; adds a row per training
    to reports/results.csv, a JSON in reports/fits/ and its curves in reports/curves/. The same
    command again goes on behind the last whole epoch of an interrupted training.
    """
    from featx.evaluate import format_table, summarise
    from featx.train import TrainPlan, run_train

    options["allow_code"] += network
    plans = [TrainPlan(network=name, **options) for name in network]
    results = [result for plan in plans for result in run_train(plan, reporter, click.echo)]
    click.echo(format_table(summarise([result.fit for result in results])))
    n_known = sum(result.is_known for result in results)
    known = f"{n_known} trainings answered, " if n_known else ""
    folder = Path(options["reports_dir"])
    click.echo(f"{known}{len(results) - n_known} added to {folder / 'results.csv'}")
