"""`mimcl embed`: write an encoder's features of all images, with their keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from mimcl.cli.evaluate import eval_options
from mimcl.cli.evaluate.eval_options import PoolName, PrecisionName, SplitName
from mimcl.pipeline.data_config import DecoderName

if TYPE_CHECKING:
    from mimcl.cli.embed.feature_files import Embedded
    from mimcl.model.distributed import World

Dtype = Literal["float32", "float16"]
_SUFFIXES = (".npy", ".parquet")
_TIMEOUT_S = 8 * 3600.0  # for a process that waits for the others' features


@dataclass(frozen=True)
class EmbedOptions:
    """Which images to embed, and how; `precision` auto is that of the run, or of the machine for a file of weights."""

    split: SplitName = "train"
    list_file: Path | None = None
    pool: PoolName = "mean"
    dtype: Dtype = "float32"
    precision: PrecisionName = "auto"
    decoder: DecoderName = "auto"


def embed_command(
    path: eval_options.Checkpoint,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="Folder or URL of shards, or a folder or archive of images as `mimcl shard` reads it."
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write: NAME.npy, with NAME.keys.txt beside it, or NAME.parquet.")],
    split: Annotated[SplitName, typer.Option(help="Split of SRC.")] = EmbedOptions.split,
    list_file: Annotated[
        Path | None, typer.Option("--list", help="Text file with one path in the folder SRC per line.")
    ] = None,
    pool: eval_options.Pool = EmbedOptions.pool,
    dtype: Annotated[Dtype, typer.Option(help="Type of the numbers in the file.")] = EmbedOptions.dtype,
    precision: Annotated[
        PrecisionName, typer.Option(help="Precision to compute in; auto is that of the run.")
    ] = EmbedOptions.precision,
    decoder: eval_options.Decoder = EmbedOptions.decoder,
) -> None:
    """Write the encoder's features of all images of SRC, as `mimcl eval` computes them.

    If it is killed, the same command continues. Bad images are named, listed in NAME.npy.json, and have no row. Several
    processes share the work: torchrun --nproc-per-node 2 --no-python mimcl embed RUN SRC --out FILE.
    """
    _require_inputs(path, source, out)
    from mimcl.cli.console import console
    from mimcl.cli.screen import printable
    from mimcl.model.distributed import World

    world = World.from_environment()
    found = embed(path, source, out, EmbedOptions(split, list_file, pool, dtype, precision, decoder), world)
    if world.rank:
        return
    if found.bad:
        console.print(f"bad images: {len(found.bad):,}, without a row; {found.files[-1]} lists them")
    beside = ", ".join(str(file) for file in found.files[1:])
    console.print(f"wrote {out}: {found.rows:,} features of {found.width} numbers ({dtype}), and {beside}")
    reads = f'np.load("{out}", mmap_mode="r")' if out.suffix == ".npy" else f'pyarrow.parquet.read_table("{out}")'
    console.print(f"next: {printable(reads)}")


def embed(
    path: Path, source: str | Path, out: Path, options: EmbedOptions = EmbedOptions(), world: World | None = None
) -> Embedded:
    """Write the features of all images of a split to `out`, in the order of the shards, or of the source's paths.

    `path` is a run, a checkpoint or a file of weights, `out` ends in .npy or .parquet. The ranks of `world` share the
    images; their number does not change the result. Features are kept in chunks in a hidden folder beside `out` until
    all are there, so a call that was killed continues there, and neither images nor features need to fit in memory; at
    the end they are on the disk twice.
    If `out` has these features already, nothing is computed. Raises ConfigError if `out` has others, CheckpointError if
    there is no encoder, DataError if images cannot be read.
    """
    _require_inputs(path, source, out)
    import json
    from functools import partial

    import xxhash

    from mimcl.cli.console import console
    from mimcl.cli.data.images import open_images
    from mimcl.cli.embed.feature_files import find_finished, write_features
    from mimcl.cli.embed.unfinished import UnfinishedFeatures, folder_for
    from mimcl.cli.encoders.bad_images import BadImages
    from mimcl.cli.encoders.encoder import Encoder
    from mimcl.cli.encoders.lock import lock
    from mimcl.cli.encoders.mae_features import MaeFeatures
    from mimcl.cli.encoders.split_features import fill, on_images, open_decoder
    from mimcl.cli.errors import ConfigError
    from mimcl.model.config import SIZES
    from mimcl.model.digest import weights_digest
    from mimcl.model.distributed import World, agree, barrier, connected
    from mimcl.pipeline.files import DataError

    for value, kind in ((options.pool, PoolName), (options.dtype, Dtype), (options.precision, PrecisionName)):
        if value not in get_args(kind):
            raise ConfigError(f"{value!r} must be one of {', '.join(get_args(kind))}")
    world = world or World()
    encoder = Encoder.load(path)
    index, notes = open_images(source, options.split, options.list_file)
    if not index.samples:
        raise DataError(f"{index.shown} has no {options.split} images")
    if world.rank == 0:
        for note in [*notes, *([encoder.note] if encoder.note else [])]:
            console.print(note)
    precision = encoder.precision if options.precision == "auto" else options.precision
    device = world.device()
    extractor = MaeFeatures(str(path), encoder.model().to(world.inference_device()), precision, options.pool)
    decoder = open_decoder(options.decoder, extractor.image_size, index, world=world)
    settings = {
        "weights": weights_digest(encoder.tensors),
        "images": index.fingerprint,
        "pool": options.pool,
        "precision": precision,
        "decoder": decoder.name,
    }
    if finished := find_finished(out, settings | {"dtype": options.dtype}):
        if world.rank == 0:
            console.print(f"{out} already has these features; remove it to compute them again")
        return finished
    features = UnfinishedFeatures(folder_for(out), index.samples, SIZES[encoder.config.model.name][0])
    chunks = range(len(features.store.chunks))
    fill_chunks = partial(
        fill, index, [features.store], [on_images(extractor)], decoder, bad=BadImages(index, max_bad=1.0)
    )
    with connected(world, device, _TIMEOUT_S), lock(features.folder, world, "give another --out"):
        agree("what is to be embedded", xxhash.xxh128_hexdigest(json.dumps(settings).encode()))
        if world.rank == 0 and (done := features.begin(settings)):
            console.print(f"resuming: {done:,} of {len(chunks):,} chunks of features are there")
        barrier()
        fill_chunks(chunks[world.rank :: world.size], "features" if world.rank == 0 else None)
        barrier()
        if world.rank == 0:
            fill_chunks(chunks)  # those written on a machine with another disk
            about = {"encoder": str(encoder.path), "source": index.shown, "split": index.split}
            write_features(out, features, index, decoder, settings | {"dtype": options.dtype} | about)
            features.remove()
        barrier()
    found = find_finished(out, settings | {"dtype": options.dtype})
    if found is None:
        raise DataError(f"{out} not found; --out must be in a folder that all processes share")
    return found


def _require_inputs(path: Path, source: str | Path, out: Path) -> None:
    """Refuse what is missing before torch is imported. Raises ConfigError, DataError."""
    from mimcl.cli.errors import ConfigError
    from mimcl.pipeline.files import DataError
    from mimcl.pipeline.remote.urls import url_of

    if out.suffix not in _SUFFIXES:
        raise ConfigError(f"--out is {out}; it must end in {' or '.join(_SUFFIXES)}")
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; give the file to write in it")
    if not path.exists():
        raise DataError(f"{path} not found; give a run, a checkpoint or a file of weights")
    if not url_of(source) and not Path(source).exists():
        raise DataError(f"{source} not found; give a folder of shards or images")
