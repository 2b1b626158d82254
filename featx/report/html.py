"""Parts that pages share: templates, data within ``<script>``, assets and charts."""

from __future__ import annotations

import base64
import json
from importlib import resources
from typing import Any

from featx.errors import MissingExtraError

try:
    import altair as alt
    import itables
    import vl_convert
    from jinja2 import Environment, PackageLoader, StrictUndefined
except ImportError as error:
    raise MissingExtraError(error.name or "jinja2", "report", "a page") from error

__all__ = ["alt", "assets", "chart_spec", "environment", "to_json"]

_OFFLINE = ("dt_bundle.css", "dt_bundle.js")


def environment() -> Environment:
    """Make what fills templates: names from data are escaped, missing values are errors."""
    made = Environment(
        loader=PackageLoader("featx.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["json"] = to_json
    return made


def to_json(value: Any) -> str:
    """Write JSON that can stand within ``<script>``: no name in it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def assets(code: str) -> dict[str, str]:
    """Read the chart library and the table widget, as they were installed, and a page's own."""
    widget = resources.files(itables) / "html"
    own = resources.files("featx.report") / "templates"
    table_style, table_code = ((widget / name).read_text(encoding="utf-8") for name in _OFFLINE)
    chart_code = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    return {
        "table_style": table_style,
        "table_code": base64.b64encode(table_code.encode()).decode(),
        "chart_code": chart_code.replace("</script", "<\\/script"),
        "style": (own / "page.css").read_text(encoding="utf-8"),
        "code": "".join((own / name).read_text(encoding="utf-8") for name in ("charts.js", code)),
    }


def chart_spec(chart: Any, title: str, height: int | None = 320) -> dict[str, Any]:
    """Describe a chart that is as wide as its place on the page."""
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    sized = chart.properties(width="container", description=title, autosize=fit)
    if height is not None:
        sized = sized.properties(height=height)
    with alt.data_transformers.disable_max_rows():
        spec: dict[str, Any] = sized.to_dict()
    return spec
