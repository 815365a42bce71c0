"""Write a run's report when the run ends."""

from __future__ import annotations

from pathlib import Path

from mimcl.cli.console import console, warn
from mimcl.cli.interrupt import raised_in_imports
from mimcl.cli.suggest import command


def report_at_end(folder: Path, finished: bool) -> None:
    """Write a run's report; without reconstructions if the run was stopped, so that it exits quickly.

    Everything else has been saved by then, so any failure is only a warning.
    """
    try:
        with raised_in_imports():
            from mimcl.cli.report.writer import write_report

            path = write_report([folder], pictures=finished)
    except KeyboardInterrupt:
        warn(f"the report was interrupted; write it with `{command('report', folder)}`")
    except Exception as error:
        reason = " ".join((str(error) or type(error).__name__).split())
        warn(f"the report could not be written ({reason}); the run is complete, try `{command('report', folder)}`")
    else:
        console.print(f"report: {path}")
