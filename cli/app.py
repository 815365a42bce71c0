"""The commands of `mimcl`. Heavy libraries are imported inside the commands."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from mimcl.cli.compare.compare import compare_command
from mimcl.cli.data.repack import repack_command
from mimcl.cli.data.shard import shard_command
from mimcl.cli.data.verify import verify_command
from mimcl.cli.demo.demo import demo_command
from mimcl.cli.doctor.doctor import doctor_command
from mimcl.cli.embed.embed import embed_command
from mimcl.cli.evaluate.evaluate import protocols
from mimcl.cli.export.export import export_command
from mimcl.cli.help.commands import Commands
from mimcl.cli.inspect.inspect import inspect_command
from mimcl.cli.keys.keys import keys_command
from mimcl.cli.masks.masks import masks_command
from mimcl.cli.plan.plan import plan_command
from mimcl.cli.predict.predict import predict_command
from mimcl.cli.prototypes.build_command import build_command
from mimcl.cli.prototypes.import_scores import import_command
from mimcl.cli.report.report import report_command
from mimcl.cli.train import train_command

app = Commands(
    "Pre-train masked autoencoders on a data stream that gets harder over time.",
    epilog="Typical order: mimcl shard imagenet/ · mimcl prototypes build · mimcl train --curriculum proto",
    completion=True,
)
_DATA, _TRAINING, _RESULTS, _HELP = "Data", "Training", "Results", "Help"
app.command("shard", rich_help_panel=_DATA)(shard_command)
app.command("verify", rich_help_panel=_DATA)(verify_command)
prototypes = Commands("Prototype sets: how typical, or how hard, each image is.")
prototypes.command("build")(build_command)
prototypes.command("import")(import_command)
app.add_typer(prototypes, name="prototypes", rich_help_panel=_DATA)
app.command("repack", rich_help_panel=_DATA)(repack_command)
app.command("inspect", rich_help_panel=_DATA)(inspect_command)
app.command("plan", rich_help_panel=_TRAINING)(plan_command)
app.command("train", rich_help_panel=_TRAINING)(train_command)
app.command("compare", rich_help_panel=_TRAINING)(compare_command)
app.add_typer(protocols, name="eval", rich_help_panel=_RESULTS)
app.command("report", rich_help_panel=_RESULTS)(report_command)
app.command("masks", rich_help_panel=_RESULTS)(masks_command)
app.command("export", rich_help_panel=_RESULTS)(export_command)
app.command("embed", rich_help_panel=_RESULTS)(embed_command)
app.command("predict", rich_help_panel=_RESULTS)(predict_command)
app.command("keys", rich_help_panel=_HELP)(keys_command)
app.command("doctor", rich_help_panel=_HELP)(doctor_command)
app.command("demo", rich_help_panel=_HELP)(demo_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"mimcl {version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors; works anywhere.")] = False,
) -> None:
    pass


def version() -> str:
    """Return the installed version, or "unknown" if mimcl is used without an installation."""
    try:
        return metadata.version("mimcl")
    except metadata.PackageNotFoundError:
        return "unknown"
