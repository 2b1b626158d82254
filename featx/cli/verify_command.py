"""``featx verify``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli.options import (
    INPUT_SIZE,
    ListCommand,
    bits_option,
    code_option,
    common_options,
    list_option,
)
from featx.cli.output import echo
from featx.errors import CacheError, UsageError
from featx.network_names import check_network_name, check_weights_name
from featx.progress import Reporter
from featx.words import check_scale

if TYPE_CHECKING:
    from featx.backbones import Backbone
    from featx.engines import LocalEngine
    from featx.reference import Agreement, Picture, Reference

__all__ = ["command"]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What was typed after ``featx verify --backbone``, by the names of the options."""

    backbone: str
    weights: str | None
    weights_key: str | None
    layer: str | None
    pool: str
    input_size: int | str | None
    crop_pct: float | None
    interpolation: str | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    bits: int | None
    precision: str
    runtime: str
    store_dtype: str
    device: str
    batch_size: int | None
    photographs: tuple[Path, ...]
    labels: Path | None
    allow_code: tuple[str, ...]

    @property
    def overrides(self) -> dict[str, Any]:
        """Changes to the weights' own preprocessing that were asked for."""
        check_scale(self.mean or (0.0,), self.std or (0.0,))
        names = ("input_size", "crop_pct", "interpolation", "mean", "std", "bits")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


@click.command(cls=ListCommand)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--backbone", help="Check this backbone's features in place of FILES.")
@click.option("--weights", help="Tag (IMAGENET1K_V1), file (.pth, .safetensors), or random.")
@click.option("--weights-key", help="Entry of the file, as in featx extract.")
@click.option("--layer", help="Layer.  [default: the last convolutional feature map]")
@click.option("--pool", default="none", show_default=True, help="As in featx extract.")
@click.option(
    "--input-size",
    type=INPUT_SIZE,
    help="Pixels, or native: nothing is resized, larger pictures are cropped to the shorter side "
    "of the smallest photograph.  [default: the size of the weights]",
)
@click.option("--crop-pct", type=float, help="Ratio of crop to resize, overrides the weights'.")
@click.option("--interpolation", help="Filter of the resize, overrides the weights'.")
@click.option("--mean", type=float, nargs=3, help="RGB mean, overrides the weights'.")
@click.option("--std", type=float, nargs=3, help="RGB deviation, overrides the weights'.")
@bits_option
@click.option("--precision", default="fp32", show_default=True, help="fp32, bf16, fp16 or auto.")
@click.option(
    "--runtime", default="torch", show_default=True, help="torch, compile, openvino or auto."
)
@click.option(
    "--store-dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Round the features as a cache of this type does.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--batch-size", "-b", type=int, help="Images at once.  [default: 16, on a GPU 128]")
@list_option("--photographs", type=click.Path(path_type=Path), help="Files and folders.")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="CSV of path and imagenet_index: counts the photographs in their right class.",
)
@code_option
@common_options
def command(
    files: tuple[Path, ...], backbone: str | None, reporter: Reporter, **options: Any
) -> int:
    """Check cache FILES, or the features of a backbone.

    FILES: every byte is read and compared with the digests inside. Prints what is
    damaged, by dataset and rows; exit code 1 where anything is.

    --backbone NAME: features are computed by featx and by a slow reference (Pillow, the
    weights' own transform, the library's whole network, one image at a time,
    float32, on the CPU), on pictures made for it and on --photographs. Prints the largest
    differences and PASS or FAIL; exit code 1 on FAIL.
    """
    if bool(files) == (backbone is not None):
        raise UsageError("featx verify takes either FILES of caches or --backbone NAME")
    if backbone is not None:
        return _verify_backbone(_Plan(backbone=backbone, **options), reporter)
    _verify_files(files, reporter)
    return 0


def _verify_files(files: Sequence[Path], reporter: Reporter) -> None:
    from featx.store import verify_file
    from featx.store.recognise import why_unchecked

    n_damaged = n_unchecked = 0
    for file in files:
        if not file.exists():
            raise CacheError(f"there is no file {file}: see  featx list caches")
        if reason := why_unchecked(file):
            n_unchecked += 1
            echo(f"{file}: not checked: {reason}")
            continue
        damages = verify_file(file, reporter)
        n_damaged += bool(damages)
        echo(f"{file}: {'DAMAGED' if damages else 'intact'}")
        for damage in damages:
            echo(f"  {damage}")
    if n_unchecked == len(files):
        raise CacheError("none of these is a finished cache: see  featx list caches")
    if n_damaged:
        raise CacheError(
            f"{n_damaged} of {len(files)} files are damaged: run  featx repair FILE  on a cache; "
            "of a packed archive take another copy, or pack it again"
        )


def _verify_backbone(plan: _Plan, reporter: Reporter) -> int:
    check_network_name(plan.backbone)
    check_weights_name(plan.backbone, plan.weights)
    from featx.reference import TOLERANCES, compare, judge

    plan, pictures = _pictures(plan)
    backbone, reference, engine = _open(plan, reporter)
    how = f"{engine.device}, {engine.runtime}, {engine.precision}, {plan.store_dtype}"
    echo(
        f"{backbone.name}, weights {backbone.weights.label}, layer {backbone.layer}, pool "
        f"{backbone.pool}: {how}, batches of "
        f"{engine.batch_size}\nreference: {reference.origin}; one image at a time, float32, cpu"
    )
    width = max(len(picture.name) for picture in pictures)
    echo(f"{'image':{width}}    input  largest  relative  cosine")
    found = []
    for agreement in compare(backbone, reference, engine, pictures, store_dtype=plan.store_dtype):
        echo(_row(agreement, width))
        found.append(agreement)
    _print_classes(found, pictures)
    tolerance = TOLERANCES[engine.precision].with_storing(plan.store_dtype)
    verdict = judge(found, tolerance)
    echo(verdict.describe(f"{engine.precision}, {plan.store_dtype}"))
    return 0 if verdict.is_pass else 1


def _pictures(plan: _Plan) -> tuple[_Plan, Sequence[Picture]]:
    """Collect the pictures; put their size in place of ``native``."""
    from featx.reference import find_photographs, fit_native, made_pictures, read_labels

    labels = read_labels(plan.labels) if plan.labels else {}
    photographs = find_photographs(plan.photographs or tuple(labels), labels)
    if labels and not any(picture.label is not None for picture in photographs):
        raise UsageError(f"{plan.labels} names none of the photographs that were given")
    if plan.input_size != "native":
        return plan, [*made_pictures(), *photographs]
    side, pictures = fit_native(made_pictures(), photographs)
    echo(f"native input size: {side} pixels, nothing is resized, larger pictures are cropped")
    return replace(plan, input_size=side, crop_pct=1.0), pictures


def _open(plan: _Plan, reporter: Reporter) -> tuple[Backbone, Reference, LocalEngine]:
    from featx.backbones import open_backbone
    from featx.engines import LocalEngine, resolve_device, resolve_precision, resolve_runtime
    from featx.reference import open_reference

    device = resolve_device(plan.device)
    precision, _ = resolve_precision(plan.precision, device)
    runtime, _ = resolve_runtime(plan.runtime, device, precision)
    backbone = open_backbone(
        plan.backbone,
        weights=plan.weights,
        weights_key=plan.weights_key,
        layer=plan.layer,
        pool=plan.pool,
        overrides=plan.overrides,
        allow_code=plan.allow_code,
        reporter=reporter,
    )
    reference = open_reference(
        backbone,
        weights=plan.weights,
        overrides=plan.overrides,
        weights_key=plan.weights_key,
        allow_code=plan.allow_code,
    )
    engine = LocalEngine(device, precision, plan.batch_size, 0, runtime=runtime)
    return backbone, reference, engine


def _row(agreement: Agreement, width: int) -> str:
    if agreement.failure:
        return f"{agreement.name:{width}}  not compared: {agreement.failure}"
    return (
        f"{agreement.name:{width}}  {agreement.inputs:7.1e}  {agreement.largest:7.1e}  "
        f"{agreement.relative:8.1e}  {agreement.cosine:.9f}"
    )


def _print_classes(agreements: Sequence[Agreement], pictures: Sequence[Picture]) -> None:
    pairs = [
        (agreement.classes, picture.label)
        for agreement, picture in zip(agreements, pictures, strict=True)
        if agreement.classes
    ]
    if not pairs:
        echo("top-1 classes: not compared, the network has no usable classifier")
        return
    n_equal = sum(classes.featx == classes.reference for classes, _ in pairs)
    echo(f"top-1 classes: the same for {n_equal} of {len(pairs)} images")
    labelled = [(classes, label) for classes, label in pairs if label is not None]
    if labelled:
        n_featx = sum(classes.featx == label for classes, label in labelled)
        n_reference = sum(classes.reference == label for classes, label in labelled)
        echo(
            f"right class: {n_featx} of {len(labelled)} through featx, "
            f"{n_reference} of {len(labelled)} through the reference"
        )
