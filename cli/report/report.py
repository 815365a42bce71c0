"""What runs wrote, as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mimcl.cli.report.page import render
from mimcl.cli.report.read import read_run
from mimcl.cli.report.several import arms_of
from mimcl.cli.report.several_page import several_page
from mimcl.cli.report.single import run_page
from mimcl.pipeline.files import DataError, atomic_file


def report(
    runs: Sequence[Path], out: Path | None = None, labels: Sequence[str] | None = None, pictures: bool = True
) -> Path:
    """Writes the report of one run, or of several side by side, and returns its path.

    `out` None: report.html in the run's folder, or here for several. `labels`: one for each run; runs with the same are
    seeds of one arm, and the first is A, to whose accuracy the others are timed. Without labels, runs of one
    configuration on the same data are an arm. `pictures`: whether one run's reconstructions are drawn, which takes
    seconds. The runs' folders are only read; a run may go on meanwhile. Raises DataError.
    """
    if not runs:
        raise DataError("no run to report on; give runs/NAME")
    records = [read_run(Path(run)) for run in runs]
    arms = arms_of(records, labels)
    if len(records) == 1:
        out = Path(runs[0]) / "report.html" if out is None else out
        page = run_page(records[0], pictures)
        content = render("single.html.j2", page.charts, page=page)
    else:
        out = Path("report.html") if out is None else out
        page = several_page(arms)
        content = render("several.html.j2", page.charts, page=page)
    try:
        with atomic_file(out) as file:
            file.write(content)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}; give another --out") from None
    return out
