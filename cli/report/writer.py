"""Write the report of one or several runs as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mimcl.cli.report.links import PAGE
from mimcl.cli.report.page import render
from mimcl.cli.report.read import read_run
from mimcl.cli.report.several import arms_of
from mimcl.cli.report.several_page import SeveralPage, several_page
from mimcl.cli.report.single import RunPage, run_page
from mimcl.pipeline.files import DataError, atomic_file, remedy


def write_report(
    runs: Sequence[Path], out: Path | None = None, labels: Sequence[str] | None = None, pictures: bool = True
) -> Path:
    """Write the report of one run, or of several side by side, and return its path; `report` describes the arguments.

    Raises DataError.
    """
    if not runs:
        raise DataError("no run to report on; give runs/NAME")
    records = [read_run(Path(run)) for run in runs]
    arms = arms_of(records, labels)
    page: RunPage | SeveralPage
    if len(records) == 1:
        out = records[0].folder / PAGE if out is None else out
        template, page = "single.html.j2", run_page(records[0], out, pictures)
    else:
        out = Path(PAGE) if out is None else out
        template, page = "several.html.j2", several_page(arms, out)
    content = render(template, page.charts, page=page)
    try:
        with atomic_file(out) as file:
            file.write(content)
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror}); {remedy(error, 'give another --out')}") from None
    return out
