"""`mimcl embed`: the features of `mimcl eval`, in one file with their keys, whatever is killed or shared in between."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import ranks
from helpers.bad_samples import broken_png, flip_byte
from helpers.full_disk import limit_file_size
from helpers.images import write_train_val
from helpers.small_runs import keep_every_checkpoint
from helpers.typed import error_line, mimcl

from mimcl.cli.embed.embed import EmbedOptions, embed
from mimcl.cli.embed.feature_files import Embedded
from mimcl.cli.encoders import split_features
from mimcl.cli.encoders.feature_store import ChunkedArray
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex

pytestmark = pytest.mark.slow  # trains

TRAIN, VAL = {"ant": 60, "bee": 60, "cow": 50}, {"ant": 10, "bee": 9}  # 3 chunks and 1
REFERENCE = ("--decoder", "reference")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """images/, shards/, run/ with two checkpoints, and run.npy with the features of the train images in shards/."""
    folder = tmp_path_factory.mktemp("home")
    write_train_val(folder / "images", TRAIN, VAL)
    small = ("data.image_size=32", "data.batch_size=8", "model.decoder_depth=1", "model.patch_size=16")
    often = ("trainer.checkpoint_every_steps=3", "report=false")
    settings = [word for setting in (*small, *often) for word in ("--set", setting)]
    run = ("--recipe", "cpu_small", "--epochs", "0.2", *REFERENCE, "--out", "run")
    with pytest.MonkeyPatch.context() as patch:
        keep_every_checkpoint(patch)
        assert mimcl(patch, folder, "shard", "images") == 0
        assert mimcl(patch, folder, "train", *run, *settings) == 0
        assert mimcl(patch, folder, "embed", "run", "shards", "--out", "run.npy", *REFERENCE) == 0
    return folder


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def decoded(monkeypatch):
    """The number of images of each pass through the decoder."""
    counted, central_crop_stream = [], split_features.central_crop_stream

    def counting(index, decoder, sample_ids):
        counted.append(len(sample_ids))
        return central_crop_stream(index, decoder, sample_ids)

    monkeypatch.setattr(split_features, "central_crop_stream", counting)
    return counted


def keys_of(out: Path) -> list[list[str]]:
    return [line.split("\t") for line in out.with_suffix(".keys.txt").read_text().splitlines()]


def assert_same_files(one: Path, other: Path) -> None:
    assert one.read_bytes() == other.read_bytes()
    assert one.with_suffix(".keys.txt").read_bytes() == other.with_suffix(".keys.txt").read_bytes()


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_the_bits_are_those_of_the_evaluation(here, tmp_path, monkeypatch, pool):
    run = shutil.copytree("run", tmp_path / "run")
    assert mimcl(monkeypatch, here, "eval", "knn", str(run), "--pool", pool, *REFERENCE) == 0
    for split, count in (("train", 170), ("val", 19)):
        out = tmp_path / f"{split}.npy"
        found = embed(Path("run"), "shards", out, EmbedOptions(split, pool=pool, decoder="reference"))
        stores = [
            path for weights in (run / "evaluation" / "features").iterdir() for path in weights.glob(f"{split}-*")
        ]
        evaluated = [
            np.concatenate([np.load(chunk, allow_pickle=False) for chunk in sorted(store.glob("*.npy"))])
            for store in stores
        ]
        assert len(evaluated) == 2  # trained and untrained
        assert sum(np.array_equal(np.load(out), features) for features in evaluated) == 1
        assert found == Embedded((out, out.with_suffix(".keys.txt"), tmp_path / f"{out.name}.json"), count, 192, ())


def test_keys_paths_and_labels_lie_beside_the_rows(here):
    index = ShardIndex.load("shards")
    assert np.load("run.npy").shape == (170, 192)
    rows = [[index.key(row), index.path(row), str(index.label[row])] for row in range(170)]
    assert keys_of(Path("run.npy")) == rows
    about = json.loads(Path("run.npy.json").read_text())
    assert (about["rows"], about["width"], about["dtype"], about["pool"], about["bad"]) == (
        170,
        192,
        "float32",
        "mean",
        [],
    )
    assert about["encoder"].startswith("run/checkpoints/")


def test_a_folder_has_the_features_and_keys_of_its_shards(here, tmp_path, monkeypatch):
    for split in ("train", "val"):
        for source in ("images", "shards"):
            words = ("--split", split, "--out", str(tmp_path / f"{source}-{split}.npy"), *REFERENCE)
            assert mimcl(monkeypatch, here, "embed", "run", source, *words) == 0
        assert_same_files(tmp_path / f"images-{split}.npy", tmp_path / f"shards-{split}.npy")


def test_a_list_of_files(here, tmp_path):
    wanted = sorted(str(path.relative_to("images/train")) for path in Path("images/train").rglob("*.*"))[5:160:11]
    (tmp_path / "list").write_text("".join(f"{name}\n" for name in reversed(wanted)))
    options = EmbedOptions(list_file=tmp_path / "list", decoder="reference")
    found = embed(Path("run"), "images/train", tmp_path / "some.npy", options)
    assert found.rows == len(wanted)
    by_path = dict(zip((path for _, path, _ in keys_of(Path("run.npy"))), np.load("run.npy"), strict=True))
    assert [path for _, path, _ in keys_of(tmp_path / "some.npy")] == wanted
    for (_, path, _), feature in zip(keys_of(tmp_path / "some.npy"), np.load(tmp_path / "some.npy"), strict=True):
        np.testing.assert_allclose(feature, by_path[path], rtol=1e-2, atol=1e-2)  # bfloat16, in other batches


def test_parquet_has_a_row_group_for_each_chunk(here, tmp_path, monkeypatch, capsys):
    out = tmp_path / "features.parquet"
    assert mimcl(monkeypatch, here, "embed", "run", "shards", "--out", str(out), *REFERENCE) == 0
    last, then = capsys.readouterr().out.splitlines()[-2:]
    assert last == f"wrote {out}: 170 features of 192 numbers (float32), and {out}.json"
    assert then == f'next: pyarrow.parquet.read_table("{out}")'
    file = pq.ParquetFile(out)
    assert [file.metadata.row_group(number).num_rows for number in range(3)] == [64, 64, 42]
    table = file.read()
    assert table.column_names == ["key", "path", "label", "feature"]
    features = table["feature"].combine_chunks().flatten().to_numpy().reshape(170, 192)
    assert np.array_equal(features, np.load("run.npy"))
    known = [[key, path, int(label)] for key, path, label in keys_of(Path("run.npy"))]
    assert [
        list(row) for row in zip(*(table[name].to_pylist() for name in ("key", "path", "label")), strict=True)
    ] == known
    about = json.loads(table.schema.metadata[b"mimcl"])
    assert about["classes"] == ["ant", "bee", "cow"]
    assert about["rows"] == 170


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_float16_rounds_at_the_end(here, tmp_path, suffix):
    out = tmp_path / f"half{suffix}"
    embed(Path("run"), "shards", out, EmbedOptions(dtype="float16", decoder="reference"))
    if suffix == ".npy":
        found = np.load(out)
    else:
        found = pq.read_table(out)["feature"].combine_chunks().flatten().to_numpy().reshape(170, 192)
    assert found.dtype == np.float16
    assert np.array_equal(found, np.load("run.npy").astype(np.float16))


def test_precision_can_be_chosen(here, tmp_path):
    for precision in ("bfloat16", "float32"):
        options = EmbedOptions(precision=precision, decoder="reference")
        embed(Path("run"), "shards", tmp_path / f"{precision}.npy", options)
    exact, rounded = (np.load(tmp_path / f"{name}.npy") for name in ("float32", "bfloat16"))
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(exact, rounded, atol=0.1)


def die_at_the_second_chunk() -> None:
    write = ChunkedArray.write

    def dying(self, chunk, rows):
        if chunk == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, chunk, rows)

    ChunkedArray.write = dying


def test_killed_and_run_again_it_continues_with_the_same_bits(here, tmp_path, decoded, monkeypatch, capsys):
    words = ("embed", "run", "shards", "--out", str(tmp_path / "x.npy"), *REFERENCE)
    ranks.finish(here, ranks.start(here, *words, before=die_at_the_second_chunk), -signal.SIGKILL)
    assert [path.name for path in tmp_path.iterdir()] == [".x.npy.unfinished"]
    assert mimcl(monkeypatch, here, *words) == 0
    assert "resuming: 1 of 3 chunks" in capsys.readouterr().out
    assert decoded == [64 + 42]
    assert_same_files(tmp_path / "x.npy", here / "run.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.keys.txt", "x.npy", "x.npy.json"]
    assert mimcl(monkeypatch, here, *words) == 0
    assert "already has these features" in capsys.readouterr().out
    assert decoded == [64 + 42]


@pytest.mark.parametrize("source", ["shards", "images"])
def test_two_processes_write_the_same_bytes(here, tmp_path, source):
    ranks.run(here, "embed", "run", source, "--out", str(tmp_path / "x.npy"), *REFERENCE, size=2)
    assert_same_files(tmp_path / "x.npy", here / "run.npy")
    assert ranks.output(here, 2).count("wrote ") == 1


def test_bad_images_of_a_folder_are_named_listed_and_have_no_row(here, tmp_path, monkeypatch, capsys):
    images = tmp_path / "images"
    shutil.copytree(here / "images" / "train" / "ant", images)
    names = sorted(path.name for path in images.iterdir())
    (images / names[3]).write_text("no image")
    (images / names[7]).write_bytes((images / names[7]).read_bytes()[:-200])
    (images / "00099.png").write_bytes(broken_png(1))
    assert mimcl(monkeypatch, here, "embed", "run", str(images), "--out", str(tmp_path / "x.npy"), *REFERENCE) == 0
    captured = capsys.readouterr()
    for name in (names[3], names[7], "00099.png"):
        assert f"{name} is bad and has no features: " in captured.err
    assert f"bad images: 3, without a row; {tmp_path}/x.npy.json lists them" in captured.out
    listed = json.loads((tmp_path / "x.npy.json").read_text())["bad"]
    assert [row["path"] for row in listed] == [names[3], names[7], "00099.png"]
    assert listed[0] == {"key": "000000003", "path": names[3], "reason": "not a JPEG, PNG or WebP image"}
    assert "truncated" in listed[1]["reason"]
    assert "does not decode" in listed[2]["reason"]
    rows = keys_of(tmp_path / "x.npy")
    assert [path for _, path, _ in rows] == [name for name in names if name not in (names[3], names[7])]
    assert len(np.load(tmp_path / "x.npy")) == len(rows) == 58
    assert np.isfinite(np.load(tmp_path / "x.npy")).all()


def test_bad_images_of_shards_are_listed_even_if_they_are_many(here, tmp_path, capsys):
    shutil.copytree("shards", tmp_path / "shards")
    index = ShardIndex.load(tmp_path / "shards", "val")
    for row in range(12):  # more than an evaluation allows
        flip_byte(index, row)
    options = EmbedOptions("val", decoder="reference")
    found = embed(Path("run"), tmp_path / "shards", tmp_path / "x.parquet", options)
    assert (found.rows, len(found.bad)) == (7, 12)
    assert pq.read_table(tmp_path / "x.parquet")["key"].to_pylist() == [index.key(row) for row in range(12, 19)]
    for row in range(12, 19):
        flip_byte(index, row)
    capsys.readouterr()
    with pytest.raises(DataError, match="all 19 images of .* are bad"):
        embed(Path("run"), tmp_path / "shards", tmp_path / "y.npy", options)
    assert not list(tmp_path.glob("*y.npy*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run/checkpoints/00000003", "shards"], "was made with other weights"),
        (["run", "shards", "--split", "val"], "was made with other images"),
        (["run", "shards", "--pool", "cls"], "was made with pool mean instead of cls"),
        (["run", "shards", "--dtype", "float16"], "was made with dtype float32 instead of float16"),
    ],
)
def test_an_output_of_something_else_is_refused_and_stays(here, monkeypatch, capfd, words, message):
    before = Path("run.npy").read_bytes()
    assert mimcl(monkeypatch, here, "embed", *words, "--out", "run.npy", *REFERENCE) == 2
    complaint = capfd.readouterr().err
    assert f"run.npy {message}; give another --out, or remove it" in complaint
    assert len(complaint.splitlines()) == 1
    assert Path("run.npy").read_bytes() == before


def test_unfinished_features_of_other_weights_are_refused(here, tmp_path, monkeypatch, capfd):
    out = str(tmp_path / "x.npy")
    words = ("embed", "run", "shards", "--out", out, *REFERENCE)
    ranks.finish(here, ranks.start(here, *words, before=die_at_the_second_chunk), -signal.SIGKILL)
    capfd.readouterr()
    assert mimcl(monkeypatch, here, "embed", "run/checkpoints/00000003", *words[2:]) == 2
    assert (
        f"{tmp_path}/.x.npy.unfinished has unfinished features made with other weights; remove it"
        in capfd.readouterr().err
    )
    assert mimcl(monkeypatch, here, *words) == 0  # they are still there
    assert_same_files(tmp_path / "x.npy", here / "run.npy")


def test_a_full_disk_is_one_line_and_it_continues(here, tmp_path, monkeypatch, capfd):
    words = ("embed", "run", "shards", "--out", str(tmp_path / "x.npy"), *REFERENCE)
    with limit_file_size(64 * 192 * 4 + 1000):  # the chunks fit, the whole does not
        assert mimcl(monkeypatch, here, *words) == 1
    complaint = error_line(capfd.readouterr().err)
    assert "cannot write" in complaint
    assert "run the same command again to continue" in complaint
    assert not (tmp_path / "x.npy").exists()
    assert mimcl(monkeypatch, here, *words) == 0
    assert_same_files(tmp_path / "x.npy", here / "run.npy")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nothing", "shards", "--out", "x.npy"], 1, "nothing not found; give a run"),
        (["run", "nothing", "--out", "x.npy"], 1, "nothing not found; give a folder of shards or images"),
        (["run", "shards", "--out", "x.csv"], 2, "--out is x.csv; it must end in .npy or .parquet"),
        (["run", "shards", "--out", "folder.npy"], 2, "folder.npy is a folder"),
        (["run", "shards"], 2, "Missing option '--out'"),
    ],
)
def test_bad_usage_is_refused_before_torch_is_imported(here, words, code, message):
    (here / "folder.npy").mkdir(exist_ok=True)
    program = (
        "import sys; sys.argv[1:] = " + repr(["embed", *words]) + "\n"
        "from mimcl.cli.main import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=here, timeout=60)
    assert done.returncode == code
    assert message in done.stderr
    assert done.stdout.split()[-1] == "False"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["shards", "shards", "--out", "x.npy"], 1, "shards is neither"),
        (["run", "images/train", "--split", "val", "--out", "x.npy"], 1, "images/train has no val split; it has train"),
        (["run", "shards", "--list", "images", "--out", "x.npy"], 2, "--list is for a folder of images"),
        (["run", "run/config.yaml", "--out", "x.npy"], 1, "is a text file"),
    ],
)
def test_bad_input_is_one_line(here, monkeypatch, capfd, words, code, message):
    before = set(here.iterdir())
    assert mimcl(monkeypatch, here, "embed", *words) == code
    complaint = capfd.readouterr().err
    assert message in complaint
    assert len(complaint.splitlines()) == 1
    assert set(here.iterdir()) == before
