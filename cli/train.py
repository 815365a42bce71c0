"""`mimcl train`: the whole flow of a run, from the index to the last checkpoint."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimcl.cli import options

if TYPE_CHECKING:
    from mimcl.cli.run.folder import Run
    from mimcl.model.distributed import World

STOPPED = 75  # exit code of a run that was asked to stop, and saved: sysexits' "try again"


def train_command(
    recipe: options.Recipe = None,
    data: options.Data = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: runs/RECIPE-CURRICULUM-MASKING)")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in --out; starts there if it has no checkpoint.")
    ] = False,
    init: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Begin with these weights: of MAE, timm, Hugging Face or another run."),
    ] = None,
    curriculum: options.Curriculum = None,
    temp_schedule: Annotated[
        str | None, typer.Option(help="cosine, linear, exponential, step, constant or learned. (default: cosine)")
    ] = None,
    r0: options.R0 = None,
    curriculum_share: options.CurriculumShare = None,
    temperature: options.Temperature = None,
    resampling: options.Resampling = None,
    order: options.Order = None,
    slice: options.Slice = None,
    masking: Annotated[
        str | None, typer.Option(help="random, block, grid, hard-patches (HPM) or learned (CL-MAE). (default: random)")
    ] = None,
    epochs: options.Epochs = None,
    online_knn: Annotated[
        float | None,
        typer.Option(metavar="N", help="Look up nearest neighbours every N epochs, and at the end. (default: never)"),
    ] = None,
    decoder: Annotated[str | None, typer.Option(help="auto, dali-gpu, dali-cpu or reference. (default: auto)")] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile. (default: no)")
    ] = None,
    max_bad: Annotated[
        float | None, typer.Option(help="Share of the draws that may be bad samples; 10 always may. (default: 0.001)")
    ] = None,
    max_nonfinite: Annotated[
        int | None, typer.Option(help="Steps in a row without a finite gradient that end the run. (default: 3)")
    ] = None,
    stall_timeout: Annotated[
        float | None,
        typer.Option(help="Seconds without data, or another process, that end the run. (default: 600)"),
    ] = None,
    wandb: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="Show the figures at Weights & Biases as well.")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI", help="Show them in MLflow: http://HOST:5000 or sqlite:///FILE.")
    ] = None,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="With --resume: this field may differ: section.key, index or prototypes."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Everything random follows from it. (default: 0)")] = None,
    config: options.ConfigFile = None,
    settings: options.Settings = None,
) -> None:
    """Pre-train a masked autoencoder on packed shards; under torchrun, in all its processes.

    Ctrl-C, SIGTERM or SIGHUP ends the run after the step, saved, with exit code 75; a second Ctrl-C leaves at once.
    """
    from mimcl.cli.config import parse_settings, read_yaml, require_constant
    from mimcl.cli.console import warn
    from mimcl.cli.run.folder import open_run
    from mimcl.model.distributed import World

    flags = {
        "data.root": data,
        "data.decoder": decoder,
        "data.max_bad": max_bad,
        "data.stall_timeout": stall_timeout,
        "curriculum.name": curriculum,
        "curriculum.temp_schedule": temp_schedule,
        "curriculum.r0": r0,
        "curriculum.share": curriculum_share,
        "curriculum.temperature": temperature,
        "curriculum.resampling": resampling,
        "curriculum.order": order,
        "curriculum.slice": slice,
        "masking.name": masking,
        "trainer.epochs": epochs,
        "trainer.online_knn_epochs": online_knn,
        "trainer.compile": compile,
        "trainer.max_nonfinite": max_nonfinite,
        "log.wandb": wandb,
        "log.mlflow": mlflow,
        "seed": seed,
        "init": init,
    }
    values = read_yaml(config) if config else {}
    values |= {key: value for key, value in flags.items() if value is not None} | parse_settings(settings or [])
    world = World.from_environment()
    run = open_run(recipe, values, out, resume, allow_change or [], warn if world.rank == 0 else lambda line: None)
    if temperature is not None:
        require_constant(run.config.curriculum)
    finished = train(run, world)
    if world.rank == 0:
        if not finished:
            typer.echo(f"stopped and saved; go on with: mimcl train --out {run.folder} --resume", err=True)
        typer.echo(run.folder)
    if not finished:
        raise typer.Exit(STOPPED)


def train(run: Run, world: World | None = None) -> bool:
    """Trains `run`, as `open_run` opened it, to its end; False when it was asked to stop before, saved.

    Everything it makes lies in its folder. `world` is this process's place among torchrun's. Raises ConfigError,
    DataError, PrototypeError, CheckpointError, TrainingError, StallError or DistributedError, each with one line that
    says what to do.
    """
    import numpy as np

    from mimcl.cli.console import busy, warn
    from mimcl.cli.encoders.initial_weights import load_initial_weights
    from mimcl.cli.errors import usage_errors
    from mimcl.cli.report.at_end import report_at_end
    from mimcl.cli.run.folder import agree_on, claimed, draws_of, fingerprints, load_distances, resolve, warmup_epochs
    from mimcl.cli.run.malloc import keep_freed_memory
    from mimcl.cli.run.resume import take_up
    from mimcl.cli.run.summary import announce
    from mimcl.cli.run.supervisor import Supervisor
    from mimcl.cli.run.trackers import require_libraries
    from mimcl.curriculum.learned_temperature import LearnedTemperature
    from mimcl.curriculum.masking.factory import make_masker
    from mimcl.curriculum.masking.schedule import MaskingSchedule
    from mimcl.curriculum.plan import Plan
    from mimcl.model.determinism import use_deterministic_kernels
    from mimcl.model.distributed import World, agree, barrier, connected
    from mimcl.model.mae import build
    from mimcl.model.trainer import Trainer
    from mimcl.pipeline.augment import hash64, random_crops
    from mimcl.pipeline.batch_shares import BatchShares
    from mimcl.pipeline.cores import decode_threads
    from mimcl.pipeline.decoder_choice import make_decoder
    from mimcl.pipeline.draw_counts import DrawCounts
    from mimcl.pipeline.index import ShardIndex
    from mimcl.pipeline.remote.urls import shown
    from mimcl.pipeline.stream import ReadOptions, Stream

    config, data, world = run.config, run.config.data, world or World()
    is_first = world.rank == 0
    require_libraries(config.log)
    with busy(f"opening {shown(data.root)}", shown=is_first):
        index = ShardIndex.load(data.root)
        distances = load_distances(config, index)
    draws = draws_of(config, index.samples)
    learned = None
    with usage_errors():
        if config.curriculum.learns:
            warm = math.ceil(warmup_epochs(config) * index.samples)
            learned = LearnedTemperature(config.curriculum, distances, batch_size=data.batch_size, warm=warm)
        plan = Plan(
            config.curriculum,
            samples=index.samples,
            distances=distances,
            draws=draws,
            batch_size=data.batch_size,
            seed=config.seed,
            hash64=hash64,
            learned=learned,
            shards=index.shard,
        )
    keep_freed_memory()
    device = world.device()
    if config.trainer.deterministic:
        use_deterministic_kernels()
    with usage_errors():
        model = build(config.model, data.image_size, config.seed)
        init_result = None
        if config.init and not run.resumed:
            init_result = load_initial_weights(model, config.model, config.init)
        model.to(device)
        masker = make_masker(
            config.masking,
            model,
            MaskingSchedule(config.masking.clock, config.trainer.epochs, draws / index.samples),
            hard_patches=config.hard_patches,
            learned=config.learned_masking,
            seed=config.seed,
        )
        sizes = data.batch_size, data.micro_batch_size
        shares = BatchShares(*sizes, world.rank, world.size, world.local_size, masker.group_size)
    micro_batches = len(shares.micro_batches)
    threads = decode_threads(world.local_size, data.decode_threads)
    decoder, decoder_choice = make_decoder(data.decoder, data.image_size, shares.longest, threads, index.largest)
    config = resolve(config, plan.window_length, decoder.name, draws // data.batch_size)
    marks = fingerprints(index, distances)
    online_knn = None
    if config.trainer.online_knn_epochs:
        from mimcl.cli.run.online_knn import OnlineKnn

        every = config.trainer.online_knn_epochs * index.samples
        online_knn = OnlineKnn(model, index, config.trainer.precision, decoder.name, every, draws, world)
    with ExitStack() as until_done:
        if is_first:
            until_done.enter_context(claimed(run.folder))
        until_done.enter_context(connected(world, device, data.stall_timeout + 60))
        agree_on(config, marks, run.resumed)
        if init_result:
            agree("what --init names", init_result.fingerprint)
        trainer = Trainer(
            model,
            masker,
            config.trainer,
            config.optim,
            samples=index.samples,
            draws=draws,
            batch_size=data.batch_size,
            micro_batches=micro_batches,
            precision=config.trainer.precision,
            # One graph is as fast or faster, but delivers all gradients when its backward pass is complete: then none
            # of them is sent to other processes while the others are computed.
            compile_unit="blocks" if world.size > 1 else "whole",
        )
        counts = DrawCounts(np.zeros(index.samples, np.uint32))
        if run.resumed:
            counts = take_up(trainer, plan, run, marks, is_first, warn)
        with usage_errors():
            stream = Stream(
                plan,
                index,
                decoder,
                random_crops(config.seed),
                shares,
                ReadOptions(data.prefetch, config.curriculum.order == "shard", data.stall_timeout),
                seed=config.seed,
                start=trainer.position,
                device=device,
            )
        if is_first:
            announce(run, config, plan, index, device, decoder_choice, trainer, stream, micro_batches, init_result)
        with Supervisor(run, config, plan, trainer, marks, counts, world, online_knn, stream.released) as supervisor:
            measure = learned.measure if learned else None
            finished = trainer.run(stream, supervisor.observers, supervisor.after_step, supervisor.stop, measure)
        if is_first and config.report:
            report_at_end(run.folder, finished)
        if not finished:
            barrier()  # the others leave with a code at which torchrun ends all; after a whole run they need not wait
        return finished
