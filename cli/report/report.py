"""`mimcl report`: write an HTML page about one run, or one that compares several."""

from __future__ import annotations

from collections.abc import Sequence
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

    path = report(runs, out, label=label or None, pictures=pictures)
    console.print(f"wrote {path} ({format_bytes(path.stat().st_size)})")


def report(
    runs: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    label: Sequence[str] | None = None,
    pictures: bool = True,
) -> Path:
    """Write the report of one run, or of several side by side, as one HTML file.

    The runs' folders are only read; a run may still be training.

    Args:
        runs: Folder of a run, or a list of them.
        out: File to write; None is report.html in the run's folder, or in the working directory for several runs.
        label: One label for each run; runs with the same label are seeds of one arm, and the first arm is the baseline.
            None: runs with the same configuration and data form an arm.
        pictures: Whether to draw one run's reconstructions, which takes seconds.

    Returns:
        The path of the file.

    Raises:
        DataError: A run cannot be read, or the file cannot be written.
    """
    from mimcl.cli.report.writer import write_report

    folders = [runs] if isinstance(runs, str | Path) else runs
    return write_report([Path(run) for run in folders], Path(out) if out else None, label, pictures)
