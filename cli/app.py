"""The commands of `mimcl`. Each is imported when it is used, and heavy libraries inside it."""

from __future__ import annotations

from typing import Annotated

import typer

from mimcl.cli.help.commands import Commands, Deferred

_DATA, _TRAINING, _RESULTS, _HELP = "Data", "Training", "Results", "Help"
_PROTOTYPES = "Prototype sets: how typical, or how hard, each image is."
app = Commands(
    "Pre-train masked autoencoders on a data stream that gets harder over time.",
    epilog="Typical order: mimcl shard imagenet/ · mimcl prototypes build · mimcl train --curriculum proto",
    completion=True,
    deferred={
        "shard": Deferred(
            _DATA,
            "mimcl.cli.data.shard:shard_command",
            "Pack images into webdataset shards with an index; unusable images are skipped and listed.",
        ),
        "verify": Deferred(
            _DATA,
            "mimcl.cli.data.verify:verify_command",
            "Check shards, indices and prototype sets against their checksums and each other.",
        ),
        "prototypes": Deferred(_DATA, "mimcl.cli.app:prototypes", _PROTOTYPES),
        "repack": Deferred(
            _DATA,
            "mimcl.cli.data.repack:repack_command",
            "Pack the images again, ordered by distance, each with a KEY.json of prototype, distance and label.",
        ),
        "inspect": Deferred(
            _DATA,
            "mimcl.cli.inspect.inspect:inspect_command",
            "Describe shards, a run, a checkpoint or prototypes: counts, sizes, classes, fingerprints, progress.",
        ),
        "plan": Deferred(
            _TRAINING,
            "mimcl.cli.plan.plan:plan_command",
            "Forecast what `mimcl train` with the same flags would draw: temperature, distinct images, repeats.",
        ),
        "train": Deferred(
            _TRAINING,
            "mimcl.cli.train:train_command",
            "Pre-train a masked autoencoder on packed shards; under torchrun, in all its processes.",
        ),
        "compare": Deferred(
            _TRAINING,
            "mimcl.cli.compare.compare:compare_command",
            "Train and evaluate arms over several seeds, and report means with confidence intervals.",
        ),
        "eval": Deferred(_RESULTS, "mimcl.cli.evaluate.evaluate:protocols", "Evaluate a trained encoder."),
        "report": Deferred(
            _RESULTS,
            "mimcl.cli.report.report:report_command",
            "Write one HTML file about a run, or one that compares several runs; nothing else is changed.",
        ),
        "masks": Deferred(
            _RESULTS,
            "mimcl.cli.masks.masks:masks_command",
            "Draw crops with their scores, masks and reconstructions at several checkpoints of a run.",
        ),
        "export": Deferred(
            _RESULTS,
            "mimcl.cli.export.export:export_command",
            "Export an encoder or a fine-tuned classifier to timm or Hugging Face, verify it there, and write a model "
            "card.",
        ),
        "embed": Deferred(
            _RESULTS,
            "mimcl.cli.embed.embed:embed_command",
            "Write the encoder's features of all images of SRC, as `mimcl eval` computes them.",
        ),
        "predict": Deferred(
            _RESULTS,
            "mimcl.cli.predict.predict:predict_command",
            "Print the most probable classes of images, with their probabilities.",
        ),
        "keys": Deferred(
            _HELP,
            "mimcl.cli.keys.keys:keys_command",
            "List the configuration keys for --set and config.yaml, each with type, unit, default, flag and purpose.",
        ),
        "doctor": Deferred(
            _HELP,
            "mimcl.cli.doctor.doctor:doctor_command",
            "Check installation, machine and data, time each stage of training, and predict the hours of a recipe.",
        ),
        "demo": Deferred(
            _HELP,
            "mimcl.cli.demo.demo:demo_command",
            "Run the whole program on generated images: pack, cluster, train with and without the curriculum, compare.",
        ),
    },
)
prototypes = Commands(
    _PROTOTYPES,
    deferred={
        "build": Deferred(
            "Commands",
            "mimcl.cli.prototypes.build_command:build_command",
            "Cluster the images in feature space and store the distance of each to its prototype.",
        ),
        "import": Deferred(
            "Commands",
            "mimcl.cli.prototypes.import_scores:import_command",
            "Make a prototype set from scores of the train images, such as losses; higher = harder.",
        ),
    },
)


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
    from importlib import metadata

    try:
        return metadata.version("mimcl")
    except metadata.PackageNotFoundError:
        return "unknown"
