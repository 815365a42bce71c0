"""`mimcl prototypes import`: a set of anybody's scores, which every other command takes as one that was built."""

import csv
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest
from helpers.full_disk import limit_file_size
from helpers.images import write_flat
from helpers.typed import error_line, mimcl
from pyarrow import parquet

from mimcl.cli.inspect.inspect import inspect
from mimcl.cli.prototypes import gallery
from mimcl.cli.prototypes.import_scores import import_scores
from mimcl.cli.prototypes.score_file import read_scores
from mimcl.curriculum.prototypes import PrototypeSet
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex, file_digest
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder

pytestmark = pytest.mark.slow  # draws galleries, trains

IMAGES = 40
RUN = (
    *("train", "--recipe", "cpu_small", "--curriculum", "proto", "--decoder", "reference", "--epochs", "1.6"),
    *("--set", "data.batch_size=16", "--set", "data.image_size=16", "--set", "model.patch_size=8"),
    *("--set", "model.decoder_depth=1", "--set", "model.decoder_width=32"),
)
SET = ("--prototypes", "mine")


@pytest.fixture(autouse=True, scope="module")
def small():
    """Galleries of few images, which is faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "_CLUSTERS", 1)
        patch.setattr(gallery, "_ROWS_OF_ONE", 1)
        yield


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    write_flat(folder / "images", IMAGES, width=24, height=20)
    pack(image_folder(folder / "images"), folder / "shards", PackConfig(workers=1), on_progress=id)
    return folder / "shards"


@pytest.fixture
def home(packed, tmp_path):
    """A folder with shards/."""
    shutil.copytree(packed, tmp_path / "shards")
    return tmp_path


@pytest.fixture(scope="module")
def keys(packed):
    return ShardIndex.load(packed).keys()


SCORES = np.random.default_rng(0).gamma(2, size=IMAGES)
ORDER = np.random.default_rng(1).permutation(IMAGES)


def table(keys, **more):
    """The scores in another order than the index's, with a column that nobody asked for."""
    columns = {"path": [f"p{n}" for n in ORDER], "key": [keys[n] for n in ORDER], "score": SCORES[ORDER]}
    return pa.table(columns | {name: [values[n] for n in ORDER] for name, values in more.items()})


def write_csv(path, found):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([found.column_names, *zip(*found.to_pydict().values(), strict=True)])


def write(path, keys, **more):
    if path.suffix == ".npy":
        np.save(path, SCORES)
    elif path.suffix == ".csv":
        write_csv(path, table(keys, **more))
    else:
        parquet.write_table(table(keys, **more), path)


@pytest.mark.parametrize("name", ["losses.npy", "losses.csv", "losses.parquet", "LOSSES.CSV"])
def test_a_file_of_any_kind_is_the_same_set(home, keys, name, monkeypatch, capsys):
    if name == "LOSSES.CSV":
        write_csv(home / name, table(keys))
        (home / name).write_bytes(b"\xef\xbb\xbf" + (home / name).read_bytes())  # as a spreadsheet saves it
    else:
        write(home / name, keys)
    assert mimcl(monkeypatch, home, "prototypes", "import", name, "--name", "mine") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"scores of {IMAGES} images: {SCORES.min():.4g} to {SCORES.max():.4g} wrote" in out
    assert "next: mimcl train --curriculum proto --prototypes mine" in out
    folder = home / "shards" / "prototypes" / "mine"
    found = PrototypeSet.load(folder, ShardIndex.load(home / "shards").fingerprint)
    expected = (SCORES - SCORES.min()) / (SCORES.max() - SCORES.min())
    np.testing.assert_allclose(found.distance, expected, atol=1e-7)
    assert (found.cluster == 0).all()
    assert found.info["scores"] == {
        "name": name,
        "xxh128": file_digest(home / name),
        "lowest": SCORES.min(),
        "highest": SCORES.max(),
    }
    assert sorted(os.listdir(folder)) == ["centroids.npy", "gallery.png", "prototypes.json", "train.arrow"]
    assert (folder / "gallery.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_clusters_are_numbered_without_gaps(home, keys, kind):
    given = np.where(np.arange(IMAGES) % 4 == 0, 70, np.arange(IMAGES) % 4).tolist()
    write(home / f"s.{kind}", keys, cluster=given)
    _, found = import_scores(home / f"s.{kind}", home / "shards")
    np.testing.assert_array_equal(found.cluster, [{1: 0, 2: 1, 3: 2, 70: 3}[number] for number in given])
    np.testing.assert_allclose(found.centroids[3, 0], SCORES[::4].mean(), rtol=1e-6)
    assert found.info["cluster_sizes"] == [10, 10]


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i8", "|u1", "<f2"])
def test_numbers_of_any_type(home, dtype):
    np.save(home / "s.npy", np.arange(IMAGES).astype(dtype))
    _, found = import_scores(home / "s.npy", home / "shards")
    np.testing.assert_allclose(found.distance, np.arange(IMAGES) / (IMAGES - 1), atol=1e-7)


def test_text_that_is_stored_otherwise(home, keys):
    found = table(keys)
    encoded = found.set_column(1, "key", found["key"].dictionary_encode())
    parquet.write_table(
        encoded.set_column(2, "score", pa.array((1000 * SCORES[ORDER]).astype(int))), home / "s.parquet"
    )
    _, found = import_scores(home / "s.parquet", home / "shards")
    np.testing.assert_array_equal(found.raw_distance, (1000 * SCORES).astype(int))


def changed(keys, row, **values):
    rows = table(keys).to_pylist()
    rows[row] |= values
    return pa.Table.from_pylist(rows)


def npy(values):
    return lambda path, keys: np.save(path, values)


def rows(change):
    """Write what `change` makes of the keys."""

    def make(path, keys):
        if path.suffix == ".csv":
            write_csv(path, change(keys))
        else:
            parquet.write_table(change(keys), path)

    return make


def raw(content):
    return lambda path, keys: path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("s.npy", npy(SCORES[:-1]), r"has shape (39,); it must be (40,), a score for each train image of shards"),
        ("s.npy", npy(SCORES[:, None]), "has shape (40, 1); it must be (40,)"),
        ("s.npy", npy(np.where(np.arange(IMAGES) == 7, np.nan, SCORES)), "the score of key 000000007 is nan"),
        ("s.npy", npy(np.where(SCORES > 1, np.inf, SCORES)), "is inf"),
        ("s.npy", npy(np.where(SCORES > 1, 1e300, SCORES)), "is 1e+300"),
        ("s.npy", npy(np.full(IMAGES, 2.5)), "s.npy: all scores are equal (2.5)"),
        ("s.npy", npy(np.array(["1"] * IMAGES)), "has values of type <U1; it must have numbers"),
        ("s.npy", npy(np.zeros(IMAGES, bool)), "has values of type bool"),
        ("s.npy", npy(np.zeros(IMAGES, complex)), "has values of type complex128"),
        ("s.npy", lambda path, keys: np.save(path, np.array([{}] * IMAGES), allow_pickle=True), "cannot be read"),
        ("s.npy", raw(b""), "cannot be read"),
        ("s.npy", raw(b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'shape': (40"), "cannot be read"),
        ("s.npy", lambda path, keys: None, "s.npy cannot be read (No such file or directory); give a file"),
        ("s.npy", lambda path, keys: path.mkdir(), "s.npy cannot be read"),
        ("s.npy", lambda path, keys: os.mkfifo(path), "is not a regular file"),
        ("s.txt", npy(SCORES), "s.txt must end in .npy, .csv or .parquet"),
        ("s.csv", rows(lambda keys: changed(keys, 3, key="nope")), "1 keys match no train image of shards, the first"),
        (
            "s.csv",
            rows(lambda keys: changed(keys, 3, key="7")),
            "is '7'; keys are as in the index, such as '000000000'",
        ),
        ("s.csv", rows(lambda keys: table(keys).slice(1)), "1 images have no row, the first is"),
        ("s.csv", rows(lambda keys: pa.concat_tables([table(keys)] * 3)), "occurs 3 times; give each key once"),
        ("s.csv", rows(lambda keys: table(keys).drop_columns("score")), "no column score (it has path, key)"),
        ("s.csv", rows(lambda keys: table(keys).drop_columns("key")), "no column key (it has path, score)"),
        ("s.csv", raw(b"key,score,score\n000000000,1,2\n"), "has 2 columns score; keep one"),
        ("s.csv", rows(lambda keys: changed(keys, 3, score=None)), "is nan"),
        ("s.csv", raw(b"key,score\n000000000,abc\n"), "invalid value 'abc'"),
        ("s.csv", raw(b"key,score\n\xff\xfe,1\n"), "cannot be read"),
        ("s.csv", raw(b"key,score\n000000000\n"), "cannot be read"),
        ("s.csv", raw(b""), "cannot be read"),
        ("s.csv", raw(b"key;score\n000000000;1.5\n"), "has no column key (it has key;score)"),
        (
            "s.csv",
            rows(lambda keys: table(keys).append_column("cluster", [[-1] * IMAGES])),
            "some clusters are missing or negative",
        ),
        ("s.csv", rows(lambda keys: table(keys).append_column("cluster", [["a"] * IMAGES])), "invalid value 'a'"),
        ("s.parquet", raw(b"PAR1 or not"), "cannot be read"),
        (
            "s.parquet",
            rows(lambda keys: table(keys).set_column(1, "key", [list(range(IMAGES))])),
            'column key has type int64; it must be text, as in the index ("000000000")',
        ),
        (
            "s.parquet",
            rows(lambda keys: table(keys).set_column(2, "score", [["1"] * IMAGES])),
            "column score has type string; it must be numbers",
        ),
        ("s.parquet", rows(lambda keys: pa.concat_tables([table(keys)] * 3)), "has 120 rows for 40 images"),
        ("s.parquet", rows(lambda keys: pa.concat_tables([table(keys)] * 2)), "occurs 2 times"),
        (
            "s.parquet",
            rows(lambda keys: table(keys).append_column("cluster", [np.linspace(0, 1, IMAGES)])),
            "column cluster has type double; it must be whole numbers",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_cannot_be_used_is_one_line_and_leaves_nothing(
    home, keys, name, make, message, monkeypatch, capsys
):
    make(home / name, keys)
    assert mimcl(monkeypatch, home, "prototypes", "import", name) in (1, 2)
    assert message in error_line(capsys.readouterr().err)
    assert not (home / "shards" / "prototypes").exists()


@pytest.mark.parametrize("kind", ["npy", "csv", "parquet"])
def test_a_damaged_file_is_refused_or_has_finite_scores(packed, tmp_path, keys, kind):
    """Bytes are flipped all over it: one line, or scores, never another error."""
    path, index = tmp_path / f"s.{kind}", ShardIndex.load(packed)
    write(path, keys)
    content, refused = path.read_bytes(), []
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            found = read_scores(path, index)
        except DataError as error:
            refused.append(str(error))
        else:
            assert np.isfinite(found.scores).all()
            assert len(found.scores) == len(found.cluster) == IMAGES
    assert len(refused) > 5
    assert not any("\n" in line for line in refused)


def test_a_set_that_exists_is_replaced_only_if_asked(home, keys, monkeypatch, capsys):
    write(home / "s.npy", keys)
    _, before = import_scores(home / "s.npy", home / "shards", name="mine")
    np.save(home / "s.npy", -SCORES)
    words = ("prototypes", "import", "s.npy", "--name", "mine")
    assert mimcl(monkeypatch, home, *words) == 1
    assert "exists; give another --name or --out, or --overwrite" in error_line(capsys.readouterr().err)
    fingerprint = ShardIndex.load(home / "shards").fingerprint
    folder = home / "shards" / "prototypes" / "mine"
    np.testing.assert_array_equal(PrototypeSet.load(folder, fingerprint).distance, before.distance)
    assert mimcl(monkeypatch, home, *words, "--overwrite") == 0
    np.testing.assert_allclose(PrototypeSet.load(folder, fingerprint).distance, 1 - before.distance, atol=1e-6)
    assert os.listdir(home / "shards" / "prototypes") == ["mine"]


def test_a_full_disk_is_one_line_and_leaves_nothing(home, keys, monkeypatch, capfd):
    write(home / "s.npy", keys)
    with limit_file_size(500):
        assert mimcl(monkeypatch, home, "prototypes", "import", "s.npy") == 1
    line = error_line(capfd.readouterr().err)
    assert "cannot be written" in line
    assert "make room" in line
    assert not os.listdir(home / "shards" / "prototypes")


def test_the_other_commands_take_the_set(home, keys, monkeypatch, capsys):
    """Inspect, verify, plan, a training with its report, repack, and a set elsewhere."""
    write(home / "s.csv", keys, cluster=(np.arange(IMAGES) % 3).tolist())

    def run(*words):
        assert mimcl(monkeypatch, home, *words) == 0
        return " ".join(capsys.readouterr().out.split())

    run("prototypes", "import", "s.csv", "--name", "mine")
    assert f"scores s.csv: {SCORES.min():.6g} to {SCORES.max():.6g}, xxh128" in run("inspect", "shards/prototypes/mine")
    assert json.loads(run("inspect", "shards/prototypes/mine", "--json"))["scores"]["name"] == "s.csv"
    assert "mine: scores s.csv, matches the train split" in run("inspect", "shards")
    assert "1 prototype set: all checks passed" in run("verify", "shards")
    assert "balanced over 3 clusters" in run("plan", *RUN[1:3], "--curriculum", "proto", *SET, "--balance")
    run(*RUN, *SET, "--out", "run")
    page = (home / "run" / "report.html").read_text()
    assert "Images by the scores s.csv: the easiest, then the hardest; the number above each is its score." in page
    run("repack", "shards", "--out", "again", *SET)
    again, before = inspect(home / "again" / "prototypes" / "mine"), inspect(home / "shards" / "prototypes" / "mine")
    assert again.scores == before.scores
    assert again.distance_quantiles == before.distance_quantiles
    run("prototypes", "import", "s.csv", "--out", "elsewhere/mine", "--data", "again")
    run("train", *RUN[1:], "--data", "again", "--prototypes", "elsewhere/mine", "--out", "second")


def test_scores_decide_what_is_drawn_first(home, keys, monkeypatch, capsys):
    np.save(home / "s.npy", np.arange(IMAGES) % 4 + np.linspace(0, 0.1, IMAGES))
    import_scores(home / "s.npy", home / "shards")
    few = ("--temp-schedule", "constant", "--temperature", "0.01", "--set", "report=false")
    assert mimcl(monkeypatch, home, *RUN, *few, "--out", "run") == 0
    counts = np.load(home / "run" / "draw_counts.npy")
    assert counts[::4].sum() > 0.99 * counts.sum()
