"""`mimcl export`: write an encoder or a classifier for timm or Hugging Face, and verify that they load it correctly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

Format = Literal["timm", "hf", "safetensors"]
LIMIT = 1e-5  # maximum difference of a valid export


@dataclass(frozen=True)
class Exported:
    """What was written, how to load it, and how much the loaded model differs from ours."""

    folder: Path
    files: tuple[Path, ...]  # relative to the folder
    calls: tuple[str, ...]  # Python expressions that load them
    difference: float  # maximum over all compared values, in float64
    rounding: float  # the same in float32
    compared: str  # what was compared, in words
    notes: tuple[str, ...] = ()  # for the user


def export_command(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="WEIGHTS",
            help="runs/NAME, one of its checkpoints, the folder of a fine-tuning, or weights from MAE, timm or HF.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to create.")],
    target: Annotated[
        Format,
        typer.Option("--format", help="Library to export for: timm, hf (Hugging Face) or safetensors (mimcl itself)."),
    ] = "timm",
    classifier: Annotated[
        bool, typer.Option("--classifier", help="Export the classifier fine-tuned from these weights, not the encoder.")
    ] = False,
) -> None:
    """Export an encoder or a fine-tuned classifier to timm or Hugging Face, verify it there, and write a model card."""
    from mimcl.cli.console import console

    found = export(path, out, target=target, classifier=classifier)
    console.print(f"wrote {found.folder}/: {', '.join(map(str, found.files))}")
    for call in found.calls:
        for line in call.splitlines():
            console.print(line)
    for note in found.notes:
        console.print(note)
    console.print(
        f"maximum difference: {found.difference:.1e} in float64, {found.rounding:.1e} in float32 ({found.compared})"
    )


def export(path: str | Path, out: str | Path, *, target: Format = "timm", classifier: bool = False) -> Exported:
    """Write an encoder, or a fine-tuned classifier, for another library into a new folder, with a model card.

    The files are loaded by timm or transformers and compared with our model. They are kept only if no value differs by
    more than 1e-5 in float64: features are of the order of 1, and in a large model float32 rounding alone can exceed
    that. An encoder for "hf" has two folders: vit for ViTModel and, with a decoder, vit_mae for ViTMAEForPreTraining.

    Args:
        path: Run, checkpoint, file of weights, or the folder of a fine-tuning, whose classifier is exported.
        out: Folder to create.
        target: "timm", "hf" (Hugging Face) or "safetensors" (mimcl itself).
        classifier: Whether to export the classifier of the run's only fine-tuning.

    Returns:
        The files, the Python expressions that load them, and the maximum difference in float64.

    Raises:
        ConfigError: The format is unknown, the folder exists, or transformers is missing.
        CheckpointError: There are no such weights, or the loaded model differs.
    """
    import importlib.util

    from safetensors import SafetensorError

    from mimcl.cli.encoders.saved import require_weights
    from mimcl.cli.errors import ConfigError
    from mimcl.model.checkpoint import CheckpointError
    from mimcl.pipeline.files import atomic_folder, list_folder, remedy

    path, out = Path(path), Path(out)
    if target not in get_args(Format):
        raise ConfigError(f"--format is {target!r}; it must be one of {', '.join(get_args(Format))}")
    if out.exists() and not (out.is_dir() and not list_folder(out)):
        raise ConfigError(f"--out {out} exists; give another folder")
    if target == "hf" and not importlib.util.find_spec("transformers"):
        raise ConfigError("--format hf needs transformers, which is not installed; pip install 'mimcl[hf]'")
    require_weights(path)

    from mimcl.cli.export.job import export_job  # only now: they import torch and timm, which takes seconds
    from mimcl.cli.export.part import versions, write

    job = export_job(path, target, classifier)
    try:
        with atomic_folder(out) as aside:
            for part in job.parts:
                write(part, aside)
            found = job.differences(aside)
            difference, rounding = (max(column) for column in zip(*found, strict=True))
            compared = "; ".join(part.compared for part in job.parts)
            if not all(exact <= LIMIT for exact, _ in found):  # a NaN is not
                raise CheckpointError(
                    f"the model that {target} loads differs from {path} by {difference:.1e}, more than {LIMIT:g} "
                    f"({compared}); nothing was written"
                )
            check = f"{difference:.1e} in float64 and {rounding:.1e} in float32, with {versions(target)} ({compared})"
            (aside / "README.md").write_text(job.card(check), "utf-8")
            files = sorted(file.relative_to(aside) for file in aside.rglob("*") if file.is_file())
    except (OSError, SafetensorError) as error:
        advice = "give another folder, or make room"
        advice = remedy(error, advice) if isinstance(error, OSError) else advice
        raise ConfigError(f"--out {out} cannot be written ({error}); {advice}") from None
    calls = tuple(part.call(out) for part in job.parts)
    return Exported(out, tuple(files), calls, difference, rounding, compared, job.notes)
