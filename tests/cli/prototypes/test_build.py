"""`mimcl prototypes build` resumes a stopped build from the results that are intact and match, and from no others."""

import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from helpers.full_disk import limit_file_size
from helpers.images import write_flat
from helpers.typed import error_line, mimcl

from mimcl.cli.encoders.feature_store import ChunkedArray
from mimcl.cli.encoders.split_features import extract, fill, on_images, open_decoder
from mimcl.cli.inspect.prototypes import describe_prototypes
from mimcl.cli.prototypes import gallery, workspace
from mimcl.cli.prototypes.build import BuildConfig, build
from mimcl.cli.prototypes.rank_zero import on_first_rank
from mimcl.cli.prototypes.workspace import BuildFolder, parts_of
from mimcl.curriculum.features import PixelFeatures, SiftFeatures
from mimcl.curriculum.prototypes import PrototypeError
from mimcl.model.world import World
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder

pytestmark = pytest.mark.slow  # builds sets of prototypes

IMAGES, ROWS = 110, 30  # of a part: 4 of them
BUILT = ["build", "--features", "pixels", "--k", "6", "--decoder", "reference"]
PIXELS, SIFT = (BuildConfig(features, 6, decoder="reference") for features in ("pixels", "sift"))


@pytest.fixture(autouse=True, scope="module")
def small():
    """Parts of few images; sift learns from few and the gallery shows few, which is faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workspace, "MAX_PART_ROWS", ROWS)
        patch.setattr(SiftFeatures, "fit_images", 12)
        patch.setattr(gallery, "_CLUSTERS", 1)
        yield


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    write_flat(folder / "images", IMAGES)
    pack(image_folder(folder / "images"), folder / "shards", PackConfig(workers=1), on_progress=lambda count: None)
    return folder / "shards"


@pytest.fixture(scope="module")
def expected(packed, tmp_path_factory):
    """The files of sets that were built without a stop, by their features."""
    shutil.copytree(packed, folder := tmp_path_factory.mktemp("built") / "shards")
    sets = [build(folder, replace(config, name=config.features))[0] for config in (PIXELS, SIFT)]
    return {folder.name: bytes_of(folder) for folder in sets}


@pytest.fixture
def data(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "shards")
    return tmp_path / "shards"


@pytest.fixture
def wrote(monkeypatch):
    """The (kind, part) of each write; `left` is the number of writes that still succeed."""

    class Writes(list):
        left = 1000

    writes, write = Writes(), ChunkedArray.write

    def noting(self, part, rows):
        if not writes.left:
            raise KeyboardInterrupt
        writes.left -= 1
        writes.append((self.folder.name, part))
        write(self, part, rows)

    monkeypatch.setattr(ChunkedArray, "write", noting)
    return writes


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stopped_after(writes, data, wrote, config=PIXELS):
    wrote.left = writes
    with pytest.raises(KeyboardInterrupt):
        build(data, config)
    wrote.left = 1000
    wrote.clear()
    return data / "prototypes" / f".{config.name}.building"


FEATURES, ASSIGNED = ([(kind, part) for part in range(4)] for kind in ("features", "assigned"))


def test_parts_are_shards_and_pieces_of_large_ones(packed):
    parts = parts_of(ShardIndex.load(packed))
    assert [(part.start, part.stop) for part in parts] == [(0, 30), (30, 60), (60, 90), (90, 110)]


def test_features_in_parts_are_those_of_the_images(packed, tmp_path):
    """Parts that end within a batch, the last part, and a part that is computed before earlier ones."""
    index, extractor = ShardIndex.load(packed), PixelFeatures()
    decoder = open_decoder("reference", extractor.image_size, index)
    whole = extract(index, extractor, decoder)
    store = ChunkedArray(tmp_path / "features", parts_of(index), np.float32)
    fill(index, [store], [on_images(extractor)], decoder, [2])
    assert store.read(1) is None
    fill(index, [store], [on_images(extractor)], decoder, range(4))
    np.testing.assert_array_equal(np.concatenate([store.read(part) for part in range(4)]), whole)


@pytest.mark.slow
@pytest.mark.parametrize("writes", [0, 2, 4, 7])
def test_a_stopped_build_resumes_with_the_missing_parts(expected, data, wrote, writes):
    config = SIFT if writes == 2 else PIXELS
    stopped_after(writes, data, wrote, config)
    assert os.listdir(data / "prototypes") == [".default.building"]
    folder, _ = build(data, config)
    assert wrote == [*FEATURES, *ASSIGNED][writes:]
    assert os.listdir(data / "prototypes") == ["default"]
    assert bytes_of(folder) == expected[config.features]


@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
@pytest.mark.parametrize("kind", ["features", "assigned"])
def test_a_damaged_part_is_computed_again(expected, data, wrote, damage, kind):
    made = stopped_after(7, data, wrote) / kind
    first, second = ((made / f"{row:09d}.npy").read_bytes() for row in (0, 30))
    flipped = second[:200] + bytes([second[200] ^ 1]) + second[201:]
    part, content = {"cut": (1, second[:-9]), "flipped": (1, flipped), "other": (2, first[:-16] + second[-16:])}[damage]
    (made / f"{30 * part:09d}.npy").write_bytes(content)
    folder, _ = build(data, PIXELS)
    assert wrote == [(kind, part), ("assigned", 3)]
    assert bytes_of(folder) == expected["pixels"]


def test_a_build_killed_before_it_wrote_settings_is_started_silently(data, capsys):
    (data / "prototypes" / f".{PIXELS.name}.building").mkdir(parents=True)
    build(data, PIXELS)
    assert "starting over" not in capsys.readouterr().out


def test_other_settings_keep_the_results_that_do_not_depend_on_them(expected, data, wrote, capsys):
    stopped_after(7, data, wrote, replace(PIXELS, k=5))
    folder, _ = build(data, PIXELS)
    assert wrote == ASSIGNED  # to other centroids
    assert bytes_of(folder) == expected["pixels"]
    stopped_after(3, data, wrote, replace(SIFT, name="two"))
    capsys.readouterr()
    folder, _ = build(data, replace(PIXELS, name="two"))
    assert "starting over" in capsys.readouterr().out
    assert wrote == [*FEATURES, *ASSIGNED]
    assert bytes_of(folder) == expected["pixels"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("settings.json", [*FEATURES, *ASSIGNED]),
        ("constants.safetensors", [*FEATURES, *ASSIGNED]),
        ("clustering.json", ASSIGNED),
        ("clustering.safetensors", ASSIGNED),
    ],
)
def test_damage_to_files_that_all_parts_share_is_noticed(expected, data, wrote, name, again):
    made = stopped_after(6, data, wrote, SIFT)
    content = (made / name).read_bytes()
    (made / name).write_bytes(content[:-20] + bytes(8) + content[-12:])
    folder, _ = build(data, SIFT)
    assert wrote == again
    assert bytes_of(folder) == expected["sift"]


def test_the_settings_of_the_features_are_written(data, wrote):
    made = stopped_after(6, data, wrote, SIFT)
    settings = json.loads((made / "settings.json").read_text())
    index = ShardIndex.load(data)
    assert settings["features"] == "sift"
    assert settings["index_fingerprint"] == index.fingerprint
    assert settings["shards"] == [30, 30, 30, 20]
    assert BuildFolder(made, index).all_features()[3].shape == (20, 1024)


def test_the_sample_is_an_option_and_recorded(data, monkeypatch, capsys):
    assert mimcl(monkeypatch, data.parent, "prototypes", *BUILT, "--sample", "60") == 0
    info = json.loads((data / "prototypes" / "default" / "prototypes.json").read_text())
    assert (info["sample"], info["samples"], info["k"]) == (60, IMAGES, 6)
    assert mimcl(monkeypatch, data.parent, "prototypes", *BUILT, "--sample", "5", "--overwrite") == 2
    error = capsys.readouterr().err
    assert "--sample is 5" in error
    assert "--k 6" in error


def test_two_levels_group_the_clusters_and_change_nothing_else(data, monkeypatch, capsys):
    _, one = build(data, replace(PIXELS, k=9, name="one"))
    _, two = build(data, replace(PIXELS, k=9, name="two", levels=2))
    np.testing.assert_array_equal(two.distance, one.distance)
    assert one.parents is None
    assert len(two.parents) == 9
    assert sorted({*two.parents.tolist()}) == [0, 1, 2]
    assert {**two.info, "parents": None} == {**one.info, "parents": None}
    _, again = build(data, replace(PIXELS, k=9, name="again", levels=2))
    np.testing.assert_array_equal(again.parents, two.parents)
    capsys.readouterr()
    assert mimcl(monkeypatch, data.parent, "inspect", "shards/prototypes/two") == 0
    sizes = np.bincount(two.parents)
    assert f"groups of clusters {sizes.min()} to {sizes.max()} clusters" in " ".join(capsys.readouterr().out.split())
    words = ("prototypes", *BUILT, "--levels", "2", "--name", "typed")
    assert mimcl(monkeypatch, data.parent, *words) == 0
    assert f"6 prototypes in 2 groups for {IMAGES} images" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--k", "3", "--levels", "2"), "--k is 3, too few clusters for --levels 2; give 4 or more"),
        (("--levels", "3"), "--levels"),
        (("--levels", "0"), "--levels"),
    ],
    ids=str,
)
def test_levels_that_are_impossible(data, words, message, monkeypatch, capsys):
    assert mimcl(monkeypatch, data.parent, "prototypes", *BUILT, *words) == 2
    assert message in error_line(capsys.readouterr().err)
    assert not (data / "prototypes").exists()


def test_too_few_clusters_of_an_automatic_choice_for_two_levels(data, monkeypatch, capfd):
    monkeypatch.setattr("mimcl.curriculum.clustering.choose_k", lambda *given: (3, [(3, 1.0)]))
    words = ("prototypes", *BUILT, "--k", "auto", "--levels", "2")
    assert mimcl(monkeypatch, data.parent, *words) == 1
    assert "3 clusters are too few for two levels; use 4 or more" in error_line(capfd.readouterr().err)
    assert os.listdir(data / "prototypes") == [".default.building"]


def test_an_existing_set_stays_until_the_new_one_is_complete(data, wrote):
    folder, _ = build(data, PIXELS)
    with pytest.raises(PrototypeError, match="exists; .*--name"):
        build(data, PIXELS)
    before, other = bytes_of(folder), replace(PIXELS, k=4, overwrite=True)
    stopped_after(6, data, wrote, other)
    assert bytes_of(folder) == before
    assert len(build(data, other)[1].centroids) == 4


def test_columns_are_allocated_on_the_disk_before_they_are_mapped(tmp_path):
    """Writing to mapped memory would kill the process if the disk is full."""
    made = BuildFolder(tmp_path, SimpleNamespace(shard=np.zeros(30_000, np.int32), shards=[{}]))
    for part, rows in enumerate(made.assigned.chunks):
        found = np.zeros(len(rows), [("cluster", "<i4"), ("raw_distance", "<f4")])
        found["cluster"], found["raw_distance"] = rows, np.array(rows) / 2
        made.assigned.write(part, found)
    columns = made.columns()
    for column, expected in zip(columns, (np.arange(30_000), np.arange(30_000) / 2, np.zeros(30_000)), strict=True):
        np.testing.assert_array_equal(column, expected)
        assert 512 * os.stat(column.filename).st_blocks >= column.nbytes


def test_a_librarys_message_about_a_full_disk_is_shown(tmp_path):
    def work():
        raise OSError("Error writing bytes to file")  # as Arrow's, which have no number

    with pytest.raises(PrototypeError, match=r"\(Error writing bytes to file\); make room"):
        on_first_rank(World(), work, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("room", [500, 80_000, 100_000])
def test_a_full_disk_is_one_line_and_the_same_command_resumes(data, expected, monkeypatch, capfd, room):
    """Full while writing the settings, a part's features, or the set itself."""
    words = ["prototypes", *BUILT]
    with limit_file_size(room):
        assert mimcl(monkeypatch, data.parent, *words) == 1
    line = error_line(capfd.readouterr().err)
    assert "(File too large)" in line
    assert "make room" in line
    assert os.listdir(data / "prototypes") == [".default.building"]
    assert mimcl(monkeypatch, data.parent, *words) == 0
    assert bytes_of(data / "prototypes" / "default") == expected["pixels"]


@pytest.fixture
def timm_weights(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_byobnet", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    return f"timm:test_byobnet@{tmp_path / 'w.pth'}"


def test_the_precision_of_timm_features_is_recorded_and_another_one_starts_anew(data, timm_weights, wrote, capsys):
    sets = {}
    for precision in ("float32", "bfloat16"):
        config = BuildConfig(timm_weights, 6, precision, decoder="reference", precision=precision)
        stopped_after(2, data, wrote, config)
        if precision == "bfloat16":
            other = data / "prototypes" / ".bfloat16.building" / "settings.json"
            other.write_text(other.read_text().replace("bfloat16", "float32"))
            build(data, config)
            printed = capsys.readouterr().out
            assert "starting over" in printed
            assert "in bfloat16" in printed
        else:
            build(data, config)
        folder = data / "prototypes" / precision
        sets[precision] = json.loads((folder / "prototypes.json").read_text())
        assert sets[precision]["precision"] == precision
        assert precision in dict(describe_prototypes(folder).lines())["features"]
    assert sets["float32"]["xxh128"] != sets["bfloat16"]["xxh128"]


def test_features_that_do_not_come_from_timm_have_their_own_precision(data):
    _, found = build(data, replace(PIXELS, precision="bfloat16"))
    assert found.info["precision"] == "float32"
