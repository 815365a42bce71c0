"""A page as one file: template, style, scripts and data together, and a policy that lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mimcl.cli.report import formatting
from mimcl.cli.report.charts import Chart

_HERE = Path(__file__).parent
_WORDS = ("number", "percent", "short", "share_or_number", "plus_minus", "interval")


def render(template: str, charts: Sequence[Chart], **values: Any) -> bytes:
    """The HTML of a template beside this file. Charts are found by it in the order in which they are given."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {name: getattr(formatting, name) for name in _WORDS}
    style = _text("vendor/uPlot.min.css") + _text("page.css")
    scripts = [_text("vendor/uPlot.iife.min.js"), _text("page.js")]
    places = {id(chart): place for place, chart in enumerate(charts)}
    allowed = " ".join(_hash(script) for script in scripts)
    html = environment.get_template(template).render(
        **values,
        place_of=lambda chart: places[id(chart)],
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {allowed}; base-uri 'none'; "
        "form-action 'none'",
        style=style,
        scripts=scripts,
        data=_embedded([chart.as_json() for chart in charts]),
    )
    return html.encode("utf-8", "replace")


def _embedded(content: Any) -> str:
    """JSON in which nothing ends the script element that it stands in."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    """As a content security policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(name: str) -> str:
    return (_HERE / name).read_text("utf-8")
