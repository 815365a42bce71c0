"""`mimcl train`: the whole flow of a run, from the index to the last checkpoint."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mimcl.cli.run import Run


def train(
    recipe: Annotated[
        str | None, typer.Option(help="auto, mae_b16, mae_l16, mae_h14, cifar_tiny or cpu_small. (default: auto)")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Folder of shards. (default: shards)")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: runs/RECIPE-CURRICULUM-MASKING)")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in --out; starts there if it has no checkpoint.")
    ] = False,
    curriculum: Annotated[
        str | None, typer.Option(help="none, proto (typical images first) or anti (far ones first). (default: none)")
    ] = None,
    temp_schedule: Annotated[
        str | None, typer.Option(help="cosine, linear, exponential, step or constant. (default: cosine)")
    ] = None,
    r0: Annotated[
        float | None, typer.Option(help="Effective fraction at the start, above 0 and below 0.632. (default: 0.15)")
    ] = None,
    curriculum_share: Annotated[
        float | None, typer.Option(help="Share of the run that the curriculum lasts, 0 to 1. (default: 1.0)")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Temperature of --temp-schedule constant, in distances. (default: 0.2)")
    ] = None,
    resampling: Annotated[str | None, typer.Option(help="multinomial or systematic. (default: multinomial)")] = None,
    masking: Annotated[str | None, typer.Option(help="random, block or grid. (default: random)")] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Length; an epoch is as many draws as images. (default: the recipe's)")
    ] = None,
    decoder: Annotated[str | None, typer.Option(help="auto, dali-gpu, dali-cpu or reference. (default: auto)")] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile. (default: no)")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Everything random follows from it. (default: 0)")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with values, such as a run's config.yaml.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value; a run's config.yaml lists all keys.")
    ] = None,
) -> None:
    """Pre-train a masked autoencoder on packed shards."""
    from mimcl.cli.config import ConfigError, parse_settings, read_yaml
    from mimcl.cli.run import open_run

    flags = {
        "data.root": data,
        "data.decoder": decoder,
        "curriculum.name": curriculum,
        "curriculum.temp_schedule": temp_schedule,
        "curriculum.r0": r0,
        "curriculum.share": curriculum_share,
        "curriculum.temperature": temperature,
        "curriculum.resampling": resampling,
        "masking.name": masking,
        "trainer.epochs": epochs,
        "trainer.compile": compile,
        "seed": seed,
    }
    values = read_yaml(config) if config else {}
    values |= {key: value for key, value in flags.items() if value is not None} | parse_settings(settings or [])
    run = open_run(recipe, values, out, resume)
    chosen = run.config.curriculum
    if temperature is not None and chosen.name != "none" and chosen.temp_schedule != "constant":
        raise ConfigError("--temperature belongs to --temp-schedule constant; the other schedules find it from --r0")
    train_run(run)
    typer.echo(run.folder)


def train_run(run: Run) -> None:
    """Trains `run` to its end; everything it makes lies in its folder."""
    import torch

    from mimcl.cli.announce import announce
    from mimcl.cli.config import usage_errors
    from mimcl.cli.console import training_bar
    from mimcl.cli.record import Recorder
    from mimcl.cli.run import draws_of, fingerprints, load_distances, resolve, take_up
    from mimcl.curriculum.masking.make import make_masker
    from mimcl.curriculum.sampler import Plan
    from mimcl.model.mae import build
    from mimcl.model.trainer import Trainer
    from mimcl.pipeline.augment import hash64, random_crops
    from mimcl.pipeline.decode import make_decoder
    from mimcl.pipeline.index import ShardIndex
    from mimcl.pipeline.stream import Stream, micro_batches

    config, data = run.config, run.config.data
    index = ShardIndex.load(Path(data.root))
    distances = load_distances(config, index)
    draws = draws_of(config, index.samples)
    with usage_errors():
        plan = Plan(
            config.curriculum,
            samples=index.samples,
            distances=distances,
            draws=draws,
            batch_size=data.batch_size,
            seed=config.seed,
            hash64=hash64,
        )
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    parts = micro_batches(data.batch_size, data.micro_batch_size)
    longest = max(stop - start for start, stop in parts)
    decoder, decoder_choice = make_decoder(data.decoder, data.image_size, longest, data.decode_threads, index.largest)
    config = resolve(config, plan.window_length, decoder.name)

    with usage_errors():
        model = build(config.model, data.image_size, config.seed).to(device)
        masker = make_masker(config.masking, model.num_patches).to(device)
    trainer = Trainer(
        model,
        masker,
        config.trainer,
        config.optim,
        samples=index.samples,
        draws=draws,
        batch_size=data.batch_size,
        micro_batches=len(parts),
        precision=config.trainer.precision,
    )
    marks = fingerprints(index, distances)
    if run.checkpoint:
        take_up(trainer, plan, run.checkpoint, marks)
    stream = Stream(
        plan,
        index,
        decoder,
        random_crops(config.seed),
        seed=config.seed,
        batch_size=data.batch_size,
        micro_batch_size=data.micro_batch_size,
        prefetch=data.prefetch,
        start=trainer.position,
        device=device,
    )
    announce(run, config, plan, index, device, decoder_choice, trainer, stream)
    with training_bar(trainer.position // data.batch_size, draws // data.batch_size) as show:
        recorder = Recorder(run.folder, config, plan, trainer, marks, show)
        with closing(recorder):
            trainer.run(stream, [recorder], recorder.after_step)
