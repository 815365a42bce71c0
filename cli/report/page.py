"""Render a self-contained HTML page, whose content security policy blocks everything external."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimcl.cli.report import formatting
from mimcl.cli.report.chart import Chart

_HERE = Path(__file__).parent
_FUNCTIONS = ("number", "percent", "short", "share_or_number", "plus_minus", "interval")


def render(template: str, charts: Sequence[Chart], **values: Any) -> bytes:
    """Render a template of this folder as HTML; `charts` are all charts that the template shows."""
    # Only now: a command whose arguments are wrong is refused before.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {name: getattr(formatting, name) for name in _FUNCTIONS}
    style = _read("vendor/uPlot.min.css") + _read("page.css")
    scripts = [_read("vendor/uPlot.iife.min.js"), _read("page.js")]
    places = {id(chart): place for place, chart in enumerate(charts)}
    allowed = " ".join(_csp_hash(script) for script in scripts)
    html = environment.get_template(template).render(
        **values,
        place_of=lambda chart: places[id(chart)],
        policy=f"default-src 'none'; img-src data:; style-src {_csp_hash(style)}; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'",
        style=style,
        scripts=scripts,
        data=_embeddable_json([chart.to_json() for chart in charts]),
    )
    return html.encode("utf-8", "replace")


def _embeddable_json(content: Any) -> str:
    """Return JSON that cannot end the script element it is embedded in."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _csp_hash(text: str) -> str:
    """Return the content security policy source of an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read(name: str) -> str:
    return (_HERE / name).read_text("utf-8")
