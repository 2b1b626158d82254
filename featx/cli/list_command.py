"""``featx list``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from typing import Any

import click

from featx.cli.json_output import echo_json, json_option
from featx.cli.options import cache_option, code_option, common_options, reports_option
from featx.cli.output import echo
from featx.errors import UsageError, unknown_name
from featx.network_names import check_network_name
from featx.progress import Reporter
from featx.text import size_text, text_table

__all__ = ["command"]

Rows = list[Sequence[Any]]


@click.command()
@click.argument("what", metavar="backbones|layers|data|caches|heads|networks|models")
@click.argument("pattern", required=False)
@click.option("--input-size", type=int, help="Side of the input for the shapes of layers.")
@cache_option
@reports_option
@code_option
@json_option
@common_options
def command(  # noqa: PLR0913
    what: str,
    pattern: str | None,
    *,
    input_size: int | None,
    cache_dir: str,
    reports_dir: str,
    allow_code: tuple[str, ...],
    as_json: bool,
    reporter: Reporter,
) -> None:
    """List what featx knows, one a line.

    PATTERN is a part of the name, or a pattern with * and ?; for layers it is the
    name of the backbone. Networks of timm are listed where it begins with timm, as in
    "timm", "timm/resnet18", "timm/resnet18.*" (every tag).
    """
    makers: dict[str, Callable[[], tuple[Sequence[str], Rows]]] = {
        "backbones": lambda: _backbones(pattern),
        "layers": lambda: _layers(pattern, input_size, allow_code),
        "data": _data,
        "caches": lambda: _caches(cache_dir),
        "heads": _heads,
        "networks": _networks,
        "models": lambda: _models(reports_dir, reporter),
    }
    if what not in makers:
        raise unknown_name("list", what, makers)
    header, rows = makers[what]()
    if pattern and what not in ("layers", "backbones"):
        wanted = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
        rows = [row for row in rows if fnmatch(str(row[0]), wanted)]
    if as_json:
        echo_json([dict(zip(header, row, strict=True)) for row in rows])
        return
    cells = [[str(cell) for cell in row] for row in rows]
    echo(text_table(header, cells, has_rule=False))


def _backbones(pattern: str | None) -> tuple[Sequence[str], Rows]:
    from featx.backbones.facts import list_facts

    rows: Rows = [
        (
            facts.name,
            facts.weights,
            _number(facts.input_px, ""),
            _number(facts.n_features, ","),
            "" if facts.n_parameters is None else f"{facts.n_parameters / 1e6:.1f} M",
            _number(facts.gmacs, ".2f"),
            facts.licence,
            " ".join(facts.others),
        )
        for facts in list_facts(pattern)
    ]
    header = ("backbone", "default weights", "input size", "features", "parameters", "GMACs")
    return (*header, "licence", "other weights"), rows


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _layers(
    name: str | None, input_size: int | None, allow_code: tuple[str, ...]
) -> tuple[Sequence[str], Rows]:
    if name is None:
        raise UsageError("name the backbone, as in  featx list layers vgg16")
    check_network_name(name)
    from featx.backbones import outline

    overrides = {} if input_size is None else {"input_size": input_size}
    loaded = outline(name, overrides, (name, *allow_code))
    taps = loaded.tap(loaded.preprocessing.crop_px)
    also: dict[str, list[str]] = {taps.default or "": ["default"]}
    for alias in taps.aliases:
        also.setdefault(taps.find(alias).name, []).append(alias)
    rows: Rows = [
        (
            point.name,
            " x ".join(str(n) for n in point.shape),
            f"{point.n_values:,}",
            " ".join(also.get(point.name, [])),
        )
        for point in taps.points
    ]
    return ("layer", "shape", "features", "also called"), rows


def _data() -> tuple[Sequence[str], Rows]:
    from featx.sources import FORMS, available_data

    rows: Rows = [*available_data().items(), *FORMS.items()]
    return ("data", "what"), rows


def _caches(folder: str) -> tuple[Sequence[str], Rows]:
    from featx.catalog import open_complete

    caches, notices = open_complete(folder)
    rows: Rows = [
        (
            cache.path.name,
            cache.meta["data"],
            cache.meta["split"],
            cache.meta["backbone"],
            cache.meta["layer"],
            f"{len(cache):,} x {cache.n_features:,}",
            size_text(cache.n_bytes),
        )
        for cache in caches
    ]
    for notice in notices:
        echo(f"warning: {notice}", err=True)
    return ("file", "data", "split", "backbone", "layer", "features", "size"), rows


def _models(folder: str, reporter: Reporter) -> tuple[Sequence[str], Rows]:
    from featx.predict import ModelsFolder
    from featx.predict.model import test_text

    rows: Rows = []
    for path, record in ModelsFolder(folder, reporter).list_models():
        features, train = (record.get(part, {}) for part in ("features", "train"))
        rows.append(
            (
                path.name,
                record.get("head"),
                features.get("backbone"),
                features.get("point", {}).get("layer"),
                len(record.get("class_names", ())),
                train.get("per_class"),
                test_text(record),
                size_text(path.stat().st_size),
            )
        )
    header = ("model", "head", "backbone", "layer", "classes", "per class", "test accuracy")
    return (*header, "size"), rows


def _heads() -> tuple[Sequence[str], Rows]:
    from featx.heads import available_heads, get_head, settings_of, words_of

    rows: Rows = []
    for name, estimator in available_heads().items():
        # One that a package offers is not imported for a list.
        words = "" if ":" in estimator else words_of(settings_of(get_head(name)))
        rows.append((name, estimator, words))
    return ("head", "estimator", "settings"), rows


def _networks() -> tuple[Sequence[str], Rows]:
    from featx.configurable import settings_of, words_of
    from featx.networks import available_networks

    rows: Rows = [
        (name, spec.origin, words_of(settings_of(spec)))
        for name, spec in available_networks().items()
    ]
    return ("network", "origin", "settings"), rows
