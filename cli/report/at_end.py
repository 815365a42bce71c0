"""The report that a run leaves behind when it ends."""

from __future__ import annotations

from pathlib import Path

from mimcl.cli.console import console, warn


def report_at_end(folder: Path, finished: bool) -> None:
    """Writes the run's report, without reconstructions for a run that was stopped, since somebody waits for its end.

    Everything is saved by then: whatever goes wrong is a warning.
    """
    try:
        from mimcl.cli.report.report import report

        path = report([folder], pictures=finished)
    except KeyboardInterrupt:
        warn(f"the report was interrupted; mimcl report {folder} writes it")
    except Exception as error:
        reason = " ".join((str(error) or type(error).__name__).split())
        warn(f"the report could not be written ({reason}); the run is whole, mimcl report {folder} tries again")
    else:
        console.print(f"report: {path}")
