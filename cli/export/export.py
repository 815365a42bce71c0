"""`mimcl export`: write an encoder or a classifier for timm or Hugging Face, verify that they load it, upload it."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

if TYPE_CHECKING:
    from mimcl.cli.export.hub_repository import HubRepository
    from mimcl.cli.export.job import ExportJob

Format = Literal["timm", "hf", "safetensors"]
LIMIT = 1e-5  # maximum difference of a valid export


@dataclass(frozen=True)
class Exported:
    """What was written or uploaded, how to load it, and how much the loaded model differs from ours."""

    folder: Path | None  # None if it was only uploaded
    files: tuple[Path, ...]  # relative to the folder
    calls: tuple[str, ...]  # Python expressions that load them
    difference: float  # maximum over all compared values, in float64
    rounding: float  # the same in float32
    compared: str  # what was compared, in words
    notes: tuple[str, ...] = ()  # for the user
    url: str | None = None  # of the hub repository
    hub_calls: tuple[str, ...] = ()  # Python expressions that load the files from there


def export_command(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="WEIGHTS",
            help="runs/NAME, one of its checkpoints, the folder of a fine-tuning, or weights from MAE, timm or HF.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder to create.", show_default="none with --push, else required")
    ] = None,
    target: Annotated[
        Format,
        typer.Option("--format", help="Library to export for: timm, hf (Hugging Face) or safetensors (mimcl itself)."),
    ] = "timm",
    classifier: Annotated[
        bool, typer.Option("--classifier", help="Export the classifier fine-tuned from these weights, not the encoder.")
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="REPO", help="Upload to this model repository of the Hugging Face Hub: NAME or USER/NAME."
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push: create the repository as a private one.")
    ] = False,
) -> None:
    """Export an encoder or a fine-tuned classifier to timm or Hugging Face, verify it there, and write a model card."""
    from mimcl.cli.console import console

    found = export(path, out, target=target, classifier=classifier, push=push, private=private)
    if found.folder:
        console.print(f"wrote {found.folder}/: {', '.join(map(str, found.files))}")
        _print_calls(found.calls)
    for note in found.notes:
        console.print(note)
    console.print(
        f"maximum difference: {found.difference:.1e} in float64, {found.rounding:.1e} in float32 ({found.compared})"
    )
    if found.url:
        console.print(f"uploaded to {found.url}: {', '.join(map(str, found.files))}")
        _print_calls(found.hub_calls)


def _print_calls(calls: tuple[str, ...]) -> None:
    from mimcl.cli.console import console

    for call in calls:
        for line in call.splitlines():
            console.print(line)


def export(
    path: str | Path,
    out: str | Path | None = None,
    *,
    target: Format = "timm",
    classifier: bool = False,
    push: str | None = None,
    private: bool = False,
) -> Exported:
    """Write an encoder, or a fine-tuned classifier, for another library, with a model card; upload it with `push`.

    The files are loaded by timm or transformers and compared with our model. They are kept only if no value differs by
    more than 1e-5 in float64: features are of the order of 1, and in a large model float32 rounding alone can exceed
    that. An encoder for "hf" has two folders: vit for ViTModel and, with a decoder, vit_mae for ViTMAEForPreTraining.

    Args:
        path: Run, checkpoint, file of weights, or the folder of a fine-tuning, whose classifier is exported.
        out: Folder to create; not needed with `push`.
        target: "timm", "hf" (Hugging Face) or "safetensors" (mimcl itself).
        classifier: Whether to export the classifier of the run's only fine-tuning.
        push: Model repository of the Hugging Face Hub, "NAME" or "USER/NAME", to which the files are uploaded in one
            commit. It is created unless it exists.
        private: Whether to create that repository as a private one.

    Returns:
        The files, the Python expressions that load them, and the maximum difference in float64.

    Raises:
        ConfigError: The format is unknown, the folder exists, the repository's name is malformed, there is no token for
            the hub, or transformers or huggingface_hub is missing.
        CheckpointError: There are no such weights, or the loaded model differs.
        DataError: The hub does not answer or refuses the upload; `out` is complete by then.
    """
    import importlib.util

    from mimcl.cli.encoders.saved import require_weights
    from mimcl.cli.errors import ConfigError
    from mimcl.cli.suggest import quote
    from mimcl.pipeline.files import DataError, list_folder

    path, out = Path(path), Path(out) if out is not None else None
    if target not in get_args(Format):
        raise ConfigError(f"--format is {target!r}; it must be one of {', '.join(get_args(Format))}")
    if out is None and push is None:
        raise ConfigError("nowhere to export to; give --out FOLDER, --push REPO, or both")
    if private and push is None:
        raise ConfigError("--private needs --push REPO")
    if out and out.exists() and not (out.is_dir() and not list_folder(out)):
        raise ConfigError(f"--out {out} exists; give another folder")
    if target == "hf" and not importlib.util.find_spec("transformers"):
        raise ConfigError("--format hf needs transformers, which is not installed; pip install 'mimcl[hf]'")
    require_weights(path)
    repository = _repository(push) if push is not None else None

    from mimcl.cli.export.job import export_job  # only now: it imports torch and timm, which takes seconds

    job = export_job(path, target, classifier)
    with nullcontext(out) if out else tempfile.TemporaryDirectory(prefix="mimcl-export-") as place:
        folder = out or Path(place) / "export"
        exported = _write(job, path, folder, target, repository, f"--out {out}" if out else str(folder.parent))
        if repository is None:
            return exported
        try:
            repository.upload(folder, f"Upload {job.name}, exported by mimcl", private)
        except DataError as error:
            advice = f"`hf upload {repository.name} {quote(str(out))}` uploads {out} later" if out else ""
            raise DataError("; ".join(filter(None, [str(error), advice]))) from None
    calls = tuple(part.hub_call(repository.name) for part in job.parts)
    return replace(exported, folder=out, calls=exported.calls if out else (), url=repository.url, hub_calls=calls)


def _repository(push: str) -> HubRepository:
    from mimcl.cli.export.hub_repository import HubRepository

    return HubRepository.find(push)


def _write(
    job: ExportJob, path: Path, out: Path, target: Format, repository: HubRepository | None, where: str
) -> Exported:
    """Write the new folder `out`, unless the model that `target` loads from it differs from ours."""
    from safetensors import SafetensorError

    from mimcl.cli.errors import ConfigError
    from mimcl.cli.export.part import versions, write
    from mimcl.model.checkpoint import CheckpointError
    from mimcl.pipeline.files import atomic_folder, remedy

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
            hub_calls = [part.hub_call(repository.name) for part in job.parts] if repository else []
            (aside / "README.md").write_text(job.card(check, hub_calls), "utf-8")
            files = sorted(file.relative_to(aside) for file in aside.rglob("*") if file.is_file())
    except (OSError, SafetensorError) as error:
        advice = "give another folder, or make room"
        advice = remedy(error, advice) if isinstance(error, OSError) else advice
        raise ConfigError(f"{where} cannot be written ({error}); {advice}") from None
    calls = tuple(part.call(out) for part in job.parts)
    return Exported(out, tuple(files), calls, difference, rounding, compared, job.notes)
