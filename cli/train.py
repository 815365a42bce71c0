"""`mimcl train`: the whole flow of a run, from the index to the last checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import typer

from mimcl.cli import options
from mimcl.cli.errors import STOPPED_EXIT_CODE

if TYPE_CHECKING:
    from mimcl.cli.run.folder import Run
    from mimcl.model.world import World


def train_command(
    context: typer.Context,
    recipe: options.Recipe = None,
    data: options.Data = None,
    out: options.RunFolder = None,
    resume: options.Resume = False,
    init: options.Init = None,
    curriculum: options.Curriculum = None,
    prototypes: options.Prototypes = None,
    temp_schedule: options.Schedule = None,
    r0: options.R0 = None,
    curriculum_share: options.CurriculumShare = None,
    temperature: options.Temperature = None,
    resampling: options.Resampling = None,
    balance: options.Balance = None,
    order: options.Order = None,
    slice_epochs: options.Slice = None,
    masking: options.Masking = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    base_lr: options.BaseLr = None,
    mask_ratio: options.MaskRatio = None,
    image_size: options.ImageSize = None,
    resolution: options.Resolution = None,
    online_knn: options.OnlineKnn = None,
    online_rank: options.OnlineRank = None,
    decoder: options.Decoder = None,
    use_compile: options.Compile = None,
    max_bad: options.MaxBad = None,
    max_nonfinite: options.MaxNonfinite = None,
    stall_timeout: options.StallTimeout = None,
    wandb: options.Wandb = None,
    mlflow: options.Mlflow = None,
    allow_change: options.AllowChange = None,
    seed: options.Seed = None,
    config: options.ConfigFile = None,
    settings: options.Settings = None,
) -> None:
    """Pre-train a masked autoencoder on packed shards; under torchrun, in all its processes.

    Ctrl-C, SIGTERM or SIGHUP stops the run after its step and saves it (exit code 75); a second Ctrl-C exits at once.
    """
    from mimcl.cli.config import parse_settings
    from mimcl.cli.console import console, print_path, warn
    from mimcl.cli.suggest import command
    from mimcl.model.world import World

    folder, finished = train(**context.params | {"settings": parse_settings(settings or [])})
    if World.from_environment().rank == 0:
        if not finished:
            warn(f"stopped and saved; continue with: {command('train', out=folder, resume=True)}")
        else:
            console.print(f"next: {_next_command(folder)}")
        print_path(folder)
    if not finished:
        raise typer.Exit(STOPPED_EXIT_CODE)


def _next_command(folder: Path) -> str:
    from mimcl.cli.encoders.saved import trained_on
    from mimcl.cli.evaluate.labelled import can_be_evaluated
    from mimcl.cli.suggest import after_training

    return after_training(folder, can_be_evaluated(trained_on(folder)))


class Trained(NamedTuple):
    """A run's folder, and whether its training is complete: if not, it was asked to stop, and saved."""

    folder: Path
    finished: bool


def train(
    recipe: options.RecipeName | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    allow_change: Collection[str] | None = None,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    **flags: Unpack[options.RunFlags],
) -> Trained:
    """Pre-train a masked autoencoder on packed shards, as `mimcl train` does.

    Ctrl-C and SIGTERM end training after a step, which is saved. Started by torchrun, all processes call it.

    Args:
        recipe: Recipe to start from; None is "auto".
        out: Folder of the run; None is runs/RECIPE-CURRICULUM-MASKING.
        resume: Whether to continue the run in `out`; it starts if it has no checkpoint.
        allow_change: Configuration keys that may differ from those of the run that is resumed.
        config: YAML file with settings.
        settings: Values of configuration keys, such as {"optim.betas": [0.9, 0.95]}; they win over `flags`, which win
            over `config`.
        **flags: The other options of `mimcl train`, with _ for -, such as curriculum="proto", epochs=5.

    Returns:
        The `folder` of the run, and whether it is `finished`; False if it was stopped and saved.

    Raises:
        ConfigError: An argument or key is wrong, or some do not go together.
        DataError: The shards cannot be read, or too many images are bad.
        PrototypeError: The prototype set is missing, or that of other data.
        CheckpointError: No checkpoint is intact, or it does not fit this run.
        TrainingError: Training cannot continue, for example because gradients are not finite.
        DistributedError: Processes lost their connection, or do not agree.
    """
    from mimcl.cli.config import require_constant
    from mimcl.cli.console import console, warn
    from mimcl.cli.run.folder import open_run
    from mimcl.model.world import World

    values = options.config_values(flags, config, settings)
    world = World.from_environment()
    say = (warn, console.print) if world.rank == 0 else (lambda line: None, lambda line: None)
    run = open_run(recipe, values, Path(out) if out else None, resume, allow_change or (), *say)
    if flags.get("temperature") is not None:
        require_constant(run.config.curriculum)
    return Trained(run.folder, train_run(run, world))


def train_run(run: Run, world: World | None = None) -> bool:
    """Train `run`, as `open_run` opened it, to its end; return False when it was asked to stop before, and saved.

    Everything it makes lies in its folder. `world` is this process's place among torchrun's. Raises the errors of
    `train`.
    """
    from mimcl.cli.bars import TrainingBar
    from mimcl.cli.console import busy, console, warn, warn_before_exit
    from mimcl.cli.errors import usage_errors
    from mimcl.cli.run.resolve import resolve, resolve_order
    from mimcl.cli.run.sides import resolution_of, step_costs
    from mimcl.cli.run.trackers import require_libraries
    from mimcl.cli.run.training_data import TrainingData
    from mimcl.cli.suggest import command, list_damage
    from mimcl.model.world import World
    from mimcl.pipeline.remote.urls import shown

    requested, world = resolve_order(run.config), world or World()
    is_first = world.rank == 0
    require_libraries(requested.log)
    with busy(f"opening {shown(requested.data.root)}", shown=is_first):
        data = TrainingData.open(requested)
    with usage_errors():
        plan, sides = data.plan(requested), resolution_of(requested, data.draws)

    # Only now: these import torch, which takes seconds, and what needs none has been refused by here.
    from mimcl.cli.report.at_end import report_at_end
    from mimcl.cli.run.builders import build_decoder, build_model, build_shares, build_stream, build_trainer
    from mimcl.cli.run.folder import agree_on, claimed
    from mimcl.cli.run.health import Health
    from mimcl.cli.run.malloc import keep_freed_memory
    from mimcl.cli.run.online import OnlineEvaluation
    from mimcl.cli.run.resume import resume_run
    from mimcl.cli.run.run_recorder import RunRecorder
    from mimcl.cli.run.signals import StopSignals
    from mimcl.cli.run.summary import print_settings
    from mimcl.cli.run.supervisor import saved_at_end, saved_position, take_in_pending
    from mimcl.model.determinism import use_deterministic_kernels
    from mimcl.model.distributed import agree, barrier, connected
    from mimcl.pipeline.draw_counts import DrawCounts
    from mimcl.pipeline.files import DataError

    keep_freed_memory()
    device = world.device()
    if requested.trainer.deterministic:
        use_deterministic_kernels()
    with usage_errors():
        model, masker, init_result = build_model(run, data, sides, device)
        shares = build_shares(requested, world, masker.group_size)
    decoder, decoder_choice = build_decoder(requested, data, shares, device)
    config = resolve(requested, plan.window_length, decoder.name, plan.draws // shares.batch_size)
    online = OnlineEvaluation(model, data, config, world)
    with ExitStack() as session:
        if is_first:
            session.enter_context(claimed(run.folder))
        session.enter_context(connected(world, device, config.data.stall_timeout + 60))
        agree_on(config, data.fingerprints, run.resumed)
        if init_result:
            agree("what --init names", init_result.fingerprint)
        trainer = build_trainer(model, masker, config, data, shares)
        counts = DrawCounts.zeros(data.index.samples)
        if run.resumed:
            counts = resume_run(trainer, plan, run, data.fingerprints, is_first, warn)
        with usage_errors():
            stream = build_stream(plan, config, data, decoder, shares, sides, trainer)
        if is_first:
            print_settings(run, config, plan, sides, data.index, device, decoder_choice, world.size)
            if init_result:
                console.print(init_result.line)
            if trainer.position:
                console.print(f"resuming at draw {trainer.position:,}, step {trainer.position // shares.batch_size:,}")
            console.print(f"run folder: {run.folder}")

        signals = StopSignals(warn_before_exit)
        temperature = plan.learned
        done, micro_batches = trainer.position // shares.batch_size, len(shares.micro_batches)
        bar = TrainingBar(done, trainer.last_step, micro_batches, is_first, step_costs(config, sides))
        with signals, bar.running():
            find_all = list_damage(data.index.shown, decode=False)
            at = trainer.position
            health = Health(run.folder, at, shares.batch_size, config.data.max_bad, is_first, warn, find_all)
            recorder = (
                RunRecorder(run.folder, config, plan, sides, trainer, data.fingerprints, counts, bar.show, warn)
                if is_first
                else None
            )

            observers = [observer for observer in (health, recorder, temperature, bar) if observer]
            pending = partial(take_in_pending, trainer, temperature, health, world)
            continued = f"continue with: {command('train', out=run.folder)} --resume"
            signals.abandon_with(trainer.changing, partial(saved_position, recorder, pending), continued)
            with recorder or nullcontext(), saved_at_end(recorder, signals, pending):
                steps = trainer.steps(stream, observers, lambda: signals.requested or health.excess is not None)
                for step in signals.timed(steps):
                    if temperature:  # before anything that may fail: a checkpoint made then must have it
                        temperature.update(step.outcomes)
                    health.check(step.outcomes)
                    if measures := online.due(step):
                        with trainer.paused(), bar.paused(), signals.timeout_suspended(), stream.released():
                            found = online(measures)
                        if recorder:
                            recorder.evaluated(found)
                    if recorder:
                        recorder.write(step)
        if health.excess:
            raise DataError(health.excess)
        if is_first and config.report:
            report_at_end(run.folder, trainer.finished)
        if not trainer.finished:
            barrier()  # torchrun ends all ranks when one exits with a code; after a complete run nobody has to wait
        return trainer.finished
