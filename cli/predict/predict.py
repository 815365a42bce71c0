"""`mimcl predict`: classify images with a fine-tuned classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from mimcl.cli.evaluate import eval_options
from mimcl.cli.evaluate.eval_options import PrecisionName, SplitName
from mimcl.pipeline.data_config import DecoderName

if TYPE_CHECKING:
    from mimcl.cli.predict.prediction import Prediction


@dataclass(frozen=True)
class PredictOptions:
    """How to classify; `precision` auto is that of the fine-tuning, or for an export that of the machine."""

    top: int = 5  # classes for each image
    split: SplitName = "val"  # of folders of shards
    precision: PrecisionName = "auto"
    decoder: DecoderName = "auto"


def predict_command(
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="WEIGHTS",
            help="runs/NAME with a finished `mimcl eval finetune`, the folder of one, or an exported classifier.",
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES...", help="Image files, folders of images, or folders or URLs of shards."),
    ],
    top: Annotated[int, typer.Option(min=1, help="Number of classes to print for each image.")] = PredictOptions.top,
    json_format: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each image instead.")] = False,
    split: Annotated[SplitName, typer.Option(help="Split of folders of shards.")] = PredictOptions.split,
    precision: Annotated[
        PrecisionName, typer.Option(help="Precision to compute in; auto is that of the fine-tuning.")
    ] = PredictOptions.precision,
    decoder: eval_options.Decoder = PredictOptions.decoder,
) -> None:
    """Print the most probable classes of images, with their probabilities.

    Bad images are named and do not stop the others; the exit code is then 1.
    """
    _require_inputs(weights, images)
    import json

    from mimcl.cli.console import console, warn
    from mimcl.cli.json_output import json_ready

    bad, judged = 0, []
    for found in predict(weights, images, PredictOptions(top, split, precision, decoder)):
        bad += found.error is not None
        judged += [] if found.is_right is None else [found.is_right]
        if json_format:
            print(json.dumps(json_ready(found.json())))
        elif found.error is not None:
            warn(f"{found.image} is bad: {found.error}")
        else:
            console.print(found.line())
    if judged and not json_format:
        console.print(f"accuracy: {100 * sum(judged) / len(judged):.1f} % of {len(judged):,} labelled images")
    if bad:
        warn(f"bad images: {bad:,}")
        raise typer.Exit(1)


def predict(
    weights: Path, images: Sequence[str | Path], options: PredictOptions = PredictOptions()
) -> Iterator[Prediction]:
    """Classify the central crop of each image, as `mimcl eval finetune` does; yield predictions in the given order.

    `weights` is a run with one finished fine-tuning, the folder of a fine-tuning, or an exported classifier; `images`
    are files, folders, which are searched for images, and folders or URLs of shards. Raises CheckpointError if there is
    no classifier, ConfigError if there are several, DataError if nothing is found.
    """
    _require_inputs(weights, images)
    from mimcl.cli.encoders.finetuned import FineTuned
    from mimcl.cli.errors import ConfigError
    from mimcl.cli.predict.classify import classify
    from mimcl.cli.predict.find_images import find_images

    if options.top < 1:
        raise ConfigError(f"--top is {options.top}; give 1 or more")
    if options.precision not in get_args(PrecisionName):
        choices = ", ".join(get_args(PrecisionName))
        raise ConfigError(f"--precision is {options.precision!r}; it must be one of {choices}")
    indices = find_images(images, options.split)
    tuned = FineTuned.load(weights)
    precision = tuned.precision if options.precision == "auto" else options.precision
    for index in indices:
        yield from classify(tuned.weights, index, precision, options.decoder, options.top)


def _require_inputs(weights: Path, images: Sequence[str | Path]) -> None:
    """Refuse what is missing before torch is imported. Raises DataError."""
    from mimcl.pipeline.files import DataError
    from mimcl.pipeline.remote.urls import url_of

    if not weights.exists():
        raise DataError(f"{weights} not found; give a run, the folder of a fine-tuning, or an exported classifier")
    if not any(url_of(path) or Path(path).exists() for path in images):
        raise DataError(f"{images[0]} not found; give image files, folders of images, or folders of shards")
