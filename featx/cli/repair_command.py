"""``featx repair``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from featx.cli.options import code_option, common_options
from featx.cli.output import echo
from featx.errors import CacheError
from featx.plugins import named_by
from featx.progress import Reporter

__all__ = ["command"]


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@code_option
@common_options
def command(files: tuple[Path, ...], allow_code: tuple[str, ...], reporter: Reporter) -> None:
    """Compute the damaged and the failed rows of cache FILES again, and only those.

    FILES are caches, shards, or whole places of shards. Asks again what was asked when the file
    was made, with the same images and weights. A network of your own (module:function) is named
    again:  --allow-code module:function.
    """
    from featx.extract import Plan, run_plan, run_shards
    from featx.store import Cache
    from featx.store.shards import Manifest, place_around

    for file in files:
        if (place := place_around(file)) is not None:
            manifest = Manifest.read(place)
            asked = _request(place, manifest.meta, manifest.identity)
            plan = Plan(**asked, append=True, allow_code=allow_code, cache_dir=str(place.parent))
            with named_by(file):
                run_shards(plan, reporter=reporter, tell=echo, only=file)
            continue
        try:
            with Cache.open(file) as cache:
                asked = _request(file, cache.meta, cache.meta["identity"])
                plan = Plan(**asked, append=True, allow_code=allow_code)
        except CacheError as error:
            error.add_note(
                "where the file is damaged outside its features, repeat the command that made it "
                "with --overwrite: all rows are computed again"
            )
            raise
        with named_by(file):
            run_plan(plan, reporter, target=file, tell=echo)


def _request(path: Path, meta: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    from featx.extract import Plan
    from featx.extract.plan import NOT_RECORDED
    from featx.own_features import is_own
    from featx.reproduce.schema import read_fields

    request = meta.get("request")
    if is_own(identity):
        raise CacheError(
            f"{path} holds features that featx did not compute: make it again, with "
            "featx import  or  featx concat  and --overwrite"
        )
    if not isinstance(request, dict) or not request.get("backbone"):
        raise CacheError(f"{path} does not record the command that made it")
    fields = read_fields(f"the record of {path}", request, Plan, NOT_RECORDED)
    # Of the batch size, that of the rows that are there is taken up, where memory holds it.
    fields.pop("batch_size", None)
    # A sample whose record does not name its rule is of an older featx.
    fields.setdefault("draws", 1)
    return {**fields, "split": (meta["split"],), "layer": (meta["layer"],)}
