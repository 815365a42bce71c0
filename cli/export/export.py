"""`mimcl export`: a trained encoder as timm and Hugging Face load it, checked against our own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

FORMATS = ("timm", "hf", "safetensors")
LIMIT = 1e-5  # the largest difference with which an export is kept


@dataclass(frozen=True)
class Exported:
    """What was written, how it is loaded, and how far what is loaded so differs from ours."""

    folder: Path
    files: tuple[Path, ...]  # all, relative to the folder
    calls: tuple[str, ...]  # Python expressions that load them
    difference: float  # the largest between any two values that were compared, in float64
    rounding: float  # the same in float32
    compared: str  # what was
    decoder: bool  # whether it was there to be written


def export_command(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT",
            help="runs/NAME, one of its checkpoints, or weights: of MAE, timm or Hugging Face.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    format: Annotated[str, typer.Option(help="timm, hf (Hugging Face) or safetensors (as mimcl has it).")] = "timm",
) -> None:
    """Write the weights for timm or Hugging Face, load them there, compare, and write a model card beside them."""
    from mimcl.cli.console import console

    found = export(path, format, out)
    console.print(f"wrote {found.folder}/: {', '.join(map(str, found.files))}")
    for call in found.calls:
        console.print(call)
    if format == "hf" and not found.decoder:
        console.print(f"no vit_mae: {path} has no decoder")
    console.print(
        f"maximum difference: {found.difference:.1e} in float64, {found.rounding:.1e} in float32 ({found.compared})"
    )


def export(path: Path, format: str, out: Path) -> Exported:
    """Writes the encoder of a run, checkpoint or file of weights into the new folder `out`, with a model card.

    What was written is loaded, by timm or transformers, and compared with our own; it is put in place only if no value
    differs by more than 1e-5 in float64, where nothing but another model differs: features are of the order of 1, and
    rounding in float32 alone can make more than that in a large model. hf are two folders: vit for ViTModel, and
    vit_mae for ViTMAEForPreTraining where there is a decoder. Raises ConfigError for another format, for a folder in
    use, and where transformers is missing; CheckpointError where there is no encoder, or another one is loaded from
    what was written.
    """
    import importlib.util

    from safetensors import SafetensorError

    from mimcl.cli.encoders.encoder import Encoder
    from mimcl.cli.errors import ConfigError
    from mimcl.cli.export.model_card import model_card
    from mimcl.cli.export.parts import differences, parts_of, samples_of, versions, write
    from mimcl.model.checkpoint import CheckpointError
    from mimcl.pipeline.files import atomic_folder

    if format not in FORMATS:
        raise ConfigError(f"--format is {format!r}; give one of {', '.join(FORMATS)}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} exists; give another --out")
    if format == "hf" and not importlib.util.find_spec("transformers"):
        raise ConfigError("--format hf needs transformers, which is not installed: pip install 'mimcl[hf]'")
    encoder = Encoder.load(path)
    parts = parts_of(encoder, format)
    samples = samples_of(encoder)
    try:
        with atomic_folder(out) as aside:
            for part in parts:
                write(part, aside)
            found = [differences(part, aside, samples) for part in parts]
            difference, rounding = (max(column) for column in zip(*found, strict=True))
            compared = "; ".join(part.compared for part in parts)
            if not all(exact <= LIMIT for exact, _ in found):  # a NaN is not
                raise CheckpointError(
                    f"what {format} loads differs from {path} by {difference:.1e}, more than {LIMIT:g} ({compared}); "
                    "nothing was written"
                )
            check = f"{difference:.1e} in float64 and {rounding:.1e} in float32, with {versions(format)} ({compared})"
            card = model_card(encoder, format, [part.example for part in parts], check)
            (aside / "README.md").write_text(card)
            files = sorted(file.relative_to(aside) for file in aside.rglob("*") if file.is_file())
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{out} cannot be written ({error}); give another --out, or make room") from None
    calls = tuple(part.call(out) for part in parts)
    return Exported(out, tuple(files), calls, difference, rounding, compared, encoder.has_decoder)
