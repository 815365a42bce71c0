"""`mimcl report`: what runs did and how good they are, as one page for a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report_command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="runs/NAME, one or several; also while they go.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page. (default: RUN/report.html; ./report.html for several runs)")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="One for each run, in their order: runs with the same label are seeds of one arm."),
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Draw reconstructions, which takes seconds.")
    ] = True,
) -> None:
    """Write one HTML file about a run, or one that compares several; nothing else is changed."""
    from mimcl.cli.console import console
    from mimcl.cli.report.report import report

    path = report(runs, out, label or None, pictures)
    console.print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
