"""`mimcl report`: write an HTML page about one run, or one that compares several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report_command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="One or more run folders (runs/NAME); may still be training.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="HTML file to write.", show_default="RUN/report.html; ./report.html for several runs"),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="One label for each run, in the same order; runs with the same label are seeds of one arm."),
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Draw reconstructions; takes a few seconds.")
    ] = True,
) -> None:
    """Write one HTML file about a run, or one that compares several runs; nothing else is changed."""
    from mimcl.cli.console import console, format_bytes
    from mimcl.cli.report.writer import write_report

    path = write_report(runs, out, label or None, pictures)
    console.print(f"wrote {path} ({format_bytes(path.stat().st_size)})")
