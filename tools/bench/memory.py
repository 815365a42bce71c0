"""Check that memory does not grow: resident anonymous memory after each pass over many small images, while training.

    python tools/bench/memory.py
    python tools/bench/memory.py --data shards --curriculum proto

Goal: after 3 passes over 200,000 images of 32 pixels at most 5% more than after the first pass. Random images are
packed into a temporary folder, unless `--data` gives a packed data set. Everything else is as in `mimcl train`, with a
run folder and one checkpoint per pass, except for a model of width 32 and depth 1 and random prototype distances. Each
curriculum runs in its own process. Exit code 1 above the goal.
"""

import argparse
import io
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from mimcl.cli.config import override
from mimcl.cli.console import warn
from mimcl.cli.recipes import recipe
from mimcl.cli.run.builders import build_decoder, build_shares, build_stream, build_trainer
from mimcl.cli.run.folder import claimed
from mimcl.cli.run.health import Health
from mimcl.cli.run.resolve import draws_of, resolve
from mimcl.cli.run.run_recorder import RunRecorder
from mimcl.cli.run.sides import resolution_of
from mimcl.cli.run.training_data import TrainingData
from mimcl.curriculum.masking.random import RandomMasker
from mimcl.model.mae import MaskedAutoencoderViT
from mimcl.model.world import World
from mimcl.pipeline.draw_counts import DrawCounts
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.item import Item, Source

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.anonymous_memory import anonymous_mb

GOAL = 1.05
SIZE = 32  # pixels


class RandomImage(Item):
    """A JPEG of coarse colours and fine noise, different for each name."""

    exact = False  # its size is not known before it is encoded

    def read(self) -> bytes:
        rng = np.random.default_rng(int(self.name))
        pixels = rng.integers(0, 224, (4, 4, 3), np.uint8).repeat(SIZE // 4, 0).repeat(SIZE // 4, 1)
        pixels += rng.integers(0, 32, pixels.shape, np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        return file.getvalue()


def train(root: Path, folder: Path, curriculum: str, passes: int) -> None:
    """Train for `passes` epochs and print a line after each; exit with code 1 above the goal."""
    index = ShardIndex.load(root)
    batch = min(512, index.samples)
    values = {
        "data.root": str(root),
        "data.image_size": SIZE,
        "data.batch_size": batch,
        "data.micro_batch_size": 256,
        "curriculum.name": curriculum,
        "trainer.epochs": passes,
        "trainer.precision": "float32",
        "trainer.checkpoint_every_steps": -(-index.samples // batch),
    }
    requested = override(recipe("cifar_tiny"), values)
    distances = None
    if curriculum != "none":
        distances = np.random.default_rng(0).beta(2, 2, index.samples).astype(np.float32)
    data = TrainingData(index, distances, draws_of(requested, index.samples))
    plan = data.plan(requested)
    shares = build_shares(requested, World(), group_size=1)
    decoder, choice = build_decoder(requested, data, shares, World().device())
    config = resolve(requested, plan.window_length, decoder.name, data.draws // batch)
    model = MaskedAutoencoderViT(
        SIZE, 16, 32, 1, 1, decoder_width=32, decoder_depth=1, decoder_heads=1, norm_pix_loss=True
    )
    masker = RandomMasker(model.num_patches, config.masking.mask_ratio)
    trainer = build_trainer(model, masker, config, data, shares)
    sides = resolution_of(config, data.draws)
    stream = build_stream(plan, config, data, decoder, shares, sides, trainer)
    print(f"\ncurriculum {curriculum}, {choice}, {index.samples:,} images, at the start {anonymous_mb():.1f} MB")
    print(f"{'pass':>4} {'images':>10} {'seconds':>8} {'RssAnon MB':>11} {'to first':>9}", flush=True)
    found: list[float] = []
    started = time.perf_counter()
    health = Health(folder, 0, batch, config.data.max_bad, True, warn)
    counts, show = DrawCounts.zeros(index.samples), lambda step, figures: None
    with (
        claimed(folder),
        RunRecorder(folder, config, plan, sides, trainer, data.fingerprints, counts, show, warn) as recorder,
    ):
        for step in trainer.steps(stream, (health, recorder)):
            health.check(step.outcomes)
            recorder.write(step)
            if trainer.position >= (len(found) + 1) * index.samples:
                found.append(anonymous_mb())
                seconds, ratio = time.perf_counter() - started, found[-1] / found[0]
                print(
                    f"{len(found):>4} {trainer.position:>10,} {seconds:>8.0f} {found[-1]:>11.1f} {ratio:>9.3f}",
                    flush=True,
                )
    sys.exit(found[-1] > GOAL * found[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200_000, help="random images (default 200000)")
    parser.add_argument("--passes", type=int, default=3, help="default 3")
    parser.add_argument("--data", type=Path, help="packed data set to use instead of random images")
    parser.add_argument("--curriculum", nargs="+", choices=("none", "proto", "anti"), default=["proto", "none"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root, above = options.data or Path(name) / "shards", []
        if not options.data:
            items: list[Item] = [RandomImage(f"{number:09d}", -1, 1000) for number in range(options.samples)]
            pack(Source({"train": items}), root, PackConfig(), on_progress=lambda count: None)
        for curriculum in options.curriculum:
            process = multiprocessing.get_context("spawn").Process(
                target=train, args=(root, Path(name) / curriculum, curriculum, options.passes)
            )
            process.start()
            process.join()
            if process.exitcode:
                above.append(curriculum)
    print(f"\ngoal: at most {GOAL} times the first pass; " + (f"failed: {', '.join(above)}" if above else "met"))
    sys.exit(bool(above))


if __name__ == "__main__":
    main()
