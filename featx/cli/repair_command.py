"""``featx repair``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli.options import code_option, common_options
from featx.cli.output import echo
from featx.errors import CacheError
from featx.plugins import named_by
from featx.progress import Reporter

if TYPE_CHECKING:
    from featx.store import Cache

__all__ = ["command"]


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@code_option
@common_options
def command(files: tuple[Path, ...], allow_code: tuple[str, ...], reporter: Reporter) -> None:
    """Compute the damaged and the failed rows of cache FILES again, and only those.

    Asks again what was asked when the file was made, with the same images and weights. A network
    of your own (module:function) is named again:  --allow-code module:function.
    """
    from featx.extract import Plan, run_plan
    from featx.store import Cache

    for file in files:
        try:
            with Cache.open(file) as cache:
                plan = Plan(**_request(cache), append=True, allow_code=allow_code)
        except CacheError as error:
            error.add_note(
                "where the file is damaged outside its features, repeat the command that made it "
                "with --overwrite: all rows are computed again"
            )
            raise
        with named_by(file):
            run_plan(plan, reporter, target=file, tell=echo)


def _request(cache: Cache) -> dict[str, Any]:
    from featx.extract import Plan
    from featx.extract.plan import NOT_RECORDED
    from featx.own_features import is_own
    from featx.reproduce.schema import read_fields

    request = cache.meta.get("request")
    if is_own(cache.meta["identity"]):
        raise CacheError(
            f"{cache.path} holds features that featx did not compute: make it again, with "
            "featx import  or  featx concat  and --overwrite"
        )
    if not isinstance(request, dict) or not request.get("backbone"):
        raise CacheError(f"{cache.path} does not record the command that made it")
    fields = read_fields(f"the record of {cache.path}", request, Plan, NOT_RECORDED)
    # Of the batch size, that of the rows that are there is taken up, where memory holds it.
    fields.pop("batch_size", None)
    # A sample whose record does not name its rule is of an older featx.
    fields.setdefault("draws", 1)
    return {**fields, "split": (cache.meta["split"],), "layer": (cache.meta["layer"],)}
