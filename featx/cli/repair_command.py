"""``featx repair``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli.options import common_options
from featx.errors import CacheError
from featx.progress import Reporter

if TYPE_CHECKING:
    from featx.store import Cache

__all__ = ["command"]


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@common_options
def command(files: tuple[Path, ...], reporter: Reporter) -> None:
    """Compute the damaged rows of cache FILES again, and only those.

    Asks again what was asked when the file was made, with the same images and weights.
    """
    from featx.extract import Plan, run_plan
    from featx.store import Cache

    for file in files:
        try:
            with Cache.open(file) as cache:
                plan = Plan(**_request(cache), append=True)
        except CacheError as error:
            error.add_note(
                "where the record inside is damaged, repeat the command that made the file with "
                "--append: every row that still verifies is kept"
            )
            raise
        run_plan(plan, reporter, target=file, tell=click.echo)


def _request(cache: Cache) -> dict[str, Any]:
    request = dict(cache.meta.get("request") or {})
    if not request:
        raise CacheError(f"{cache.path} does not record the command that made it")
    lists = {name: tuple(value) for name, value in request.items() if isinstance(value, list)}
    own = {"split": (cache.meta["split"],), "layer": (cache.meta["layer"],)}
    return request | lists | own
