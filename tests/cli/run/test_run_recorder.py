"""What a checkpoint says of the windows that had started."""

import threading

import numpy as np
import pytest
from helpers.plan_batches import SAMPLES, make_batches, make_plan

from mimcl.cli.config import Config
from mimcl.cli.run.run_recorder import RunRecorder
from mimcl.curriculum.masking.random import RandomMasker
from mimcl.curriculum.resolution import resolution
from mimcl.model import checkpoint
from mimcl.model.checkpoint_path import resolve
from mimcl.model.config import OptimConfig, TrainerConfig
from mimcl.model.mae import MaskedAutoencoderViT
from mimcl.model.trainer import Trainer
from mimcl.pipeline.data_config import DataConfig
from mimcl.pipeline.draw_counts import DrawCounts

BATCH = 16
SIDES = resolution(None, 224, 16, SAMPLES, BATCH)


@pytest.fixture
def trainer():
    model = MaskedAutoencoderViT(8, 4, 8, 1, 1, decoder_width=8, decoder_depth=1, decoder_heads=1, norm_pix_loss=True)
    return Trainer(
        model,
        RandomMasker(4, 0.75),
        TrainerConfig(),
        OptimConfig(),
        samples=SAMPLES,
        draws=160,
        batch_size=BATCH,
        micro_batches=1,
        precision="float32",
    )


@pytest.mark.parametrize(("done", "started"), [(4, 5), (5, 5), (3, 3), (7, 8)])
def test_a_window_is_counted_once_although_its_first_step_was_lost(tmp_path, trainer, done, started):
    """The run ends in step `started` after `done` whole steps, four to a window, and is resumed."""
    config, plan, fingerprints = Config(data=DataConfig(batch_size=BATCH)), make_plan(), {"index": None}
    empty = DrawCounts(np.zeros(SAMPLES, np.uint32))
    recorder = RunRecorder(tmp_path, config, plan, SIDES, trainer, fingerprints, empty, lambda *_: None, pytest.fail)
    for (batch,) in list(make_batches(plan, BATCH, BATCH))[:started]:
        recorder.observe(batch, None)
    trainer.position = done * BATCH
    recorder.save()
    recorder.close()
    saved = checkpoint.load(resolve(tmp_path)).state["draw_counts"].numpy().astype(np.uint32)
    windows = np.concatenate([plan.window(number).sample_ids for number in range(2)])
    before = np.bincount(windows[: 64 * -(-done // 4)], minlength=SAMPLES)
    np.testing.assert_array_equal(saved, before)

    again = RunRecorder(
        tmp_path, config, plan, SIDES, trainer, fingerprints, DrawCounts(saved), lambda *_: None, pytest.fail
    )
    for (batch,) in list(make_batches(plan, BATCH, BATCH, start=done * BATCH))[: 8 - done]:
        again.observe(batch, None)
    again.close()
    np.testing.assert_array_equal(again._counts.counts, np.bincount(windows, minlength=SAMPLES))


def test_a_window_that_begins_while_a_checkpoint_is_written_is_not_in_it(tmp_path, trainer, monkeypatch):
    """The counts are not copied for it, as large as they may be, unless a window begins meanwhile."""
    config, plan, go = Config(data=DataConfig(batch_size=BATCH)), make_plan(), threading.Event()
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *given, **more: go.wait(30) and save(*given, **more))
    counts = DrawCounts(np.zeros(SAMPLES, np.uint32))
    recorder = RunRecorder(
        tmp_path, config, plan, SIDES, trainer, {"index": None}, counts, lambda *_: None, pytest.fail
    )
    (*first, (begins,)) = list(make_batches(plan, BATCH, BATCH))[:5]
    for (batch,) in first:
        recorder.observe(batch, None)
    trainer.position = 4 * BATCH
    recorder.begin_save()
    recorder.observe(begins, None)
    go.set()
    recorder.close()
    saved = checkpoint.load(resolve(tmp_path)).state["draw_counts"].numpy()
    windows = [np.bincount(plan.window(number).sample_ids, minlength=SAMPLES) for number in range(2)]
    np.testing.assert_array_equal(saved, windows[0])
    np.testing.assert_array_equal(recorder._counts.counts, windows[0] + windows[1])
