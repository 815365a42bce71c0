"""What knn, linear and few-shot share: features are extracted once, verified, resumed and shared by processes."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import torchruns
from helpers.bad_samples import flip_byte
from helpers.full_disk import limit_file_size
from helpers.images import write_train_val
from helpers.typed import error_line, mimcl

from mimcl.cli.encoders import split_features
from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.encoders.feature_store import feature_store
from mimcl.cli.encoders.mae_features import MaeFeatures
from mimcl.cli.encoders.split_features import extract, open_decoder
from mimcl.cli.evaluate import cached_features as module
from mimcl.cli.evaluate.eval_options import FeatureOptions
from mimcl.cli.evaluate.few_shot import few_shot
from mimcl.cli.evaluate.knn import knn
from mimcl.cli.evaluate.linear import linear
from mimcl.model.evaluate.knn import knn as knn_accuracies
from mimcl.model.jsonl import read_lines
from mimcl.pipeline.index import ShardIndex

pytestmark = pytest.mark.slow  # trains

TRAIN, VAL = {"ant": 60, "bee": 60, "cow": 50}, {"ant": 30, "bee": 30, "cow": 30}  # 3 and 2 chunks
PLAIN = FeatureOptions(decoder="reference")
OPTIONS = ("--recipe", "cpu_small", "--epochs", "0.2", "--decoder", "reference", "--out", "run")
SETTINGS = ("data.image_size=32", "data.batch_size=8", "data.micro_batch_size=8", "model.decoder_depth=1")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    write_train_val(folder / "images", TRAIN, VAL)
    settings = [word for setting in (*SETTINGS, "trainer.checkpoint_every_steps=3") for word in ("--set", setting)]
    with pytest.MonkeyPatch.context() as patch:
        assert mimcl(patch, folder, "shard", "images") == 0
        assert mimcl(patch, folder, "train", *OPTIONS, *settings) == 0
    return folder


@pytest.fixture
def fresh(home, tmp_path, monkeypatch):
    """A copy of the trained run in a new working directory."""
    shutil.copytree(home / "run", tmp_path / "run")
    (tmp_path / "shards").symlink_to(home / "shards")
    shutil.rmtree(tmp_path / "run" / "evaluation", ignore_errors=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chunks(folder: Path) -> dict[str, bytes]:
    root = folder / "run" / "evaluation" / "features"
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.npy"))}


@pytest.fixture
def decoded(monkeypatch):
    """The number of images of each pass through the decoder."""
    counted, central_crop_stream = [], split_features.central_crop_stream

    def counting(index, decoder, sample_ids):
        counted.append(len(sample_ids))
        return central_crop_stream(index, decoder, sample_ids)

    monkeypatch.setattr(split_features, "central_crop_stream", counting)
    return counted


def test_three_evaluators_decode_every_image_once_and_write_three_lines(fresh, decoded, monkeypatch, capsys):
    for name, *options in (["knn"], ["linear", "--epochs", "2"], ["few-shot", "--shots", "1", "--shots", "3"]):
        assert mimcl(monkeypatch, fresh, "eval", name, "run", "--decoder", "reference", *options) == 0
    assert decoded == [170, 90]
    lines = [json.loads(line) for line in (fresh / "run" / "metrics.jsonl").read_text().splitlines()][-3:]
    assert [line["evaluation"] for line in lines] == ["knn", "linear", "few_shot"]
    names = ["nn", "knn"], ["linear"], ["1_shot", "1_shot_std", "3_shot", "3_shot_std"]
    details = [], ["learning_rate", "held_out", "held_out_lowest"], []
    for key, expected in (("values", names), ("details", details)):
        for line, of_line in zip(lines, expected, strict=True):
            assert list(line[key]) == [*of_line, *(f"untrained_{name}" for name in of_line)]
    out = capsys.readouterr().out
    assert "0.4 MB" in out
    assert "run/evaluation/features" in out
    assert "few_shot of run/checkpoints/00000005 (shots 1 3, seeds 5, pool mean)" in out
    assert "standard deviation over 5 subsets" in out.splitlines()[-2]
    assert out.splitlines()[-1] == "next: mimcl report run"
    assert len(list((fresh / "run" / "evaluation").glob("events.out.tfevents.*"))) == 3


def test_bad_images_are_named_and_left_out(home, fresh, monkeypatch, capsys):
    (fresh / "shards").unlink()
    shutil.copytree(home / "shards", fresh / "shards")
    train, val = (ShardIndex.load(Path("shards"), split) for split in ("train", "val"))
    for index, rows in ((train, (3, 64, 169)), (val, (0, 70))):
        for row in rows:
            flip_byte(index, row)
    for name, *options in (["knn"], ["few-shot", "--shots", "2", "--seeds", "1"], ["linear", "--epochs", "1"]):
        assert mimcl(monkeypatch, fresh, "eval", name, "run", "--decoder", "reference", *options) == 0
        captured = capsys.readouterr()
        assert "167 train and 88 val images of shards" in captured.out
        assert "3 bad train images are skipped; `mimcl verify shards --decode` lists what is wrong" in captured.out
        assert captured.err.count("is bad and has no features") == (5 if name == "knn" else 0)  # then they are cached
    line = json.loads((fresh / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (line["settings"]["train"], line["settings"]["val"]) == (167, 88)


def test_too_many_bad_images_are_an_error(home, fresh, monkeypatch, capsys):
    (fresh / "shards").unlink()
    shutil.copytree(home / "shards", fresh / "shards")
    val = ShardIndex.load(Path("shards"), "val")
    for row in range(12):
        flip_byte(val, row)
    words = ("eval", "knn", "run", "--decoder", "reference")
    assert mimcl(monkeypatch, fresh, *words) == 1
    assert "12 bad images of 90 are more than the 10 allowed (12 in val-000000.tar)" in capsys.readouterr().err
    assert mimcl(monkeypatch, fresh, *words, "--max-bad", "0.2") == 0
    assert "170 train and 78 val images" in capsys.readouterr().out


def test_the_pool_option_selects_the_features(fresh):
    splits = [ShardIndex.load(Path("shards"), split) for split in ("train", "val")]
    decoder, encoder = open_decoder("reference", 32, *splits), Encoder.load(Path("run"))
    for pool in ("mean", "cls"):
        extractor = MaeFeatures("", encoder.model(), encoder.precision, pool)
        train, val = (extract(index, extractor, decoder) for index in splits)
        found = knn(Path("run"), k=5, options=FeatureOptions(pool, "reference"))
        assert found.trained == dict(knn_accuracies(train, splits[0].label, val, splits[1].label, 5))
        assert found.settings == {"k": 5, "pool": pool}


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "other"])
def test_a_damaged_chunk_is_computed_again_and_never_used(fresh, decoded, damage):
    expected = knn(Path("run"), options=PLAIN)
    intact = chunks(fresh)
    assert len(intact) == 10  # 3 and 2 of each encoder
    path = fresh / "run" / "evaluation" / "features" / sorted(intact)[1]
    content = path.read_bytes()
    replacement = {
        "cut": content[:-5],
        "flipped": content[:-9] + bytes([content[-9] ^ 64]) + content[-8:],
        "other": intact[sorted(intact)[-1]],  # intact, but shorter
    }
    path.unlink() if damage == "missing" else path.write_bytes(replacement[damage])
    decoded.clear()
    assert knn(Path("run"), options=PLAIN) == expected
    assert decoded == [64]
    assert chunks(fresh) == intact


def test_only_features_of_the_latest_weights_are_kept(fresh, decoded):
    last = knn(Path("run"), options=PLAIN)
    before = {name.partition("/")[0] for name in chunks(fresh)}
    first = knn(Path("run/checkpoints/00000003"), options=PLAIN)
    after = {name.partition("/")[0] for name in chunks(fresh)}
    assert len(before) == len(after) == 2
    assert len(before & after) == 1  # the untrained encoder's are the same
    assert first.untrained == last.untrained
    knn(Path("run"), options=FeatureOptions(decoder="reference", cache=False))
    assert not chunks(fresh)


@pytest.mark.slow
def test_a_killed_evaluation_continues_at_the_first_missing_chunk(fresh, decoded):
    command = [str(torchruns.BIN / "python"), "-c", KILLED]
    process = subprocess.run(command, cwd=fresh, env=torchruns.environment(), capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    made = chunks(fresh)
    assert len(made) == 3
    resumed = knn(Path("run"), options=PLAIN)
    assert decoded == [64 + 42, 90]  # the second chunk lacks the features of one encoder
    assert made.items() <= chunks(fresh).items()
    shutil.rmtree(fresh / "run" / "evaluation")
    assert knn(Path("run"), options=PLAIN) == resumed


KILLED = """
import os, signal
from pathlib import Path
from mimcl.cli.encoders.feature_store import ChunkedArray
from mimcl.cli.evaluate.eval_options import FeatureOptions
from mimcl.cli.evaluate.knn import knn
write, written = ChunkedArray.write, []
def dying(self, chunk, features):
    if len(written) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, chunk, features)
    written.append(chunk)
ChunkedArray.write = dying
knn(Path("run"), options=FeatureOptions(decoder="reference"))
"""

# One connection for all three: torchrun's processes can connect only once.
EVALUATED = """
from contextlib import nullcontext
from mimcl.cli.evaluate import cached_features
from mimcl.cli.app import app
from mimcl.model.distributed import connected
from mimcl.model.world import World
world = World.from_environment()
with connected(world, world.device(), 200):
    cached_features.connected = lambda *_: nullcontext()
    for words in (["knn"], ["linear", "--epochs", "20"], ["few-shot", "--shots", "2"]):
        app(["eval", *words, "run", "--decoder", "reference"], standalone_mode=False)
"""


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_processes_get_the_same_results_as_one(fresh):
    expected = [
        protocol(Path("run"), options=PLAIN, **more)
        for protocol, more in ((knn, {}), (linear, {"epochs": 20}), (few_shot, {"shots": (2,)}))
    ]
    whole = chunks(fresh)
    assert len(whole) == 10
    shutil.rmtree(fresh / "run" / "evaluation")
    log, script = fresh / "log", EVALUATED
    process = torchruns.start(log, ["--nproc-per-node", "2"], [str(torchruns.BIN / "python"), "-c", script], fresh)
    try:
        assert process.wait(200) == 0, log.read_text()
    finally:
        torchruns.kill_all(process)
    lines = [json.loads(line) for line in (fresh / "run" / "metrics.jsonl").read_text().splitlines()][-3:]
    for line, result in zip(lines, expected, strict=True):
        assert line["values"] | line["details"] == result.trained | {
            f"untrained_{name}": v for name, v in result.untrained.items()
        }
    assert chunks(fresh) == whole  # bitwise
    assert log.read_text().count("170 train and 90 val images") == 3


def test_chunks_written_on_another_machine_are_computed_again(fresh, decoded, monkeypatch):
    expected = knn(Path("run"), options=PLAIN)
    intact = chunks(fresh)
    (fresh / "run" / "evaluation" / "features" / sorted(intact)[1]).unlink()
    fill = module.fill
    monkeypatch.setattr(module, "fill", lambda *a: fill(*a) if a[5] is None else None)  # skips its own share
    decoded.clear()
    assert knn(Path("run"), options=PLAIN) == expected
    assert decoded == [64]
    assert chunks(fresh) == intact


def test_chunks_are_whole_batches_and_cover_the_split():
    for samples in (1, 63, 64, 65, 5000, 50_000, 1_281_167):
        store = feature_store(Path("nowhere"), samples, 4)
        rows = store.chunks
        assert [row for chunk in rows[:3] for row in chunk] == list(range(min(samples, sum(map(len, rows[:3])))))
        assert sum(map(len, rows)) == samples
        assert all(len(chunk) % 64 == 0 for chunk in rows[:-1])
        assert all(len(chunk) for chunk in rows)
        assert max(map(len, rows)) <= 4096
    assert store.read(0) is None


def test_a_full_disk_is_one_line(fresh, monkeypatch, capfd):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("mimcl.pipeline.files.os.fsync", full)
    assert mimcl(monkeypatch, fresh, "eval", "knn", "run", "--decoder", "reference") == 1
    complaint = error_line(capfd.readouterr().err)
    assert "No space left on device" in complaint
    assert "make room" in complaint
    assert not chunks(fresh)


def test_a_result_that_cannot_be_written_is_one_line_and_is_written_next_time(fresh, monkeypatch, capfd):
    words, metrics = ["eval", "knn", "run", "--decoder", "reference"], fresh / "run" / "metrics.jsonl"
    assert mimcl(monkeypatch, fresh, *words) == 0
    before, known = metrics.stat().st_size, read_lines(metrics)
    capfd.readouterr()
    with limit_file_size(before + 9):
        assert mimcl(monkeypatch, fresh, *words) == 1
    complaint = error_line(capfd.readouterr().err)
    assert "run/metrics.jsonl (File too large)" in complaint
    assert metrics.stat().st_size == before + 9
    assert mimcl(monkeypatch, fresh, *words) == 0
    assert read_lines(metrics) == [*known, known[-1]]


def test_a_best_rate_at_the_edge_of_the_sweep_is_reported(fresh, monkeypatch, capfd):
    noise = np.random.default_rng(0)
    monkeypatch.setattr(
        MaeFeatures, "__call__", lambda self, images: noise.standard_normal((len(images), 192), np.float32)
    )
    monkeypatch.setattr("mimcl.cli.evaluate.linear.RATES", (1.0, 2.0))
    monkeypatch.setattr(
        "mimcl.cli.evaluate.linear.linear_fast", lambda *a, **k: [("linear", 0.5), ("learning_rate", 1.0)]
    )
    linear(Path("run"), options=PLAIN)
    assert re.search("learning rate, 1,.*edge.*fewer --epochs", capfd.readouterr().err)


def test_small_classes_use_all_their_images_with_a_warning(fresh, capfd):
    assert few_shot(Path("run"), shots=(55,), seeds=1, options=PLAIN).settings["shots"] == [55]
    assert "1 of 3 classes" in capfd.readouterr().err
