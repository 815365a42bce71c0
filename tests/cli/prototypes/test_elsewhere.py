"""Prototype sets of shards that cannot be written, found again by their path; by real file modes."""

import json
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from helpers.images import write_train_val
from helpers.typed import mimcl
from helpers.unprivileged import no_privileges

from mimcl.cli.prototypes.build import BuildConfig, build
from mimcl.curriculum.prototypes import PrototypeError, PrototypeSet
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder

pytestmark = pytest.mark.slow  # builds sets and trains

BUILD = ("prototypes", "build", "--features", "pixels", "--k", "4", "--decoder", "reference")
RUN = (
    *("train", "--recipe", "cpu_small", "--curriculum", "proto", "--decoder", "reference"),
    *("--set", "data.batch_size=16", "--set", "data.image_size=16", "--set", "model.patch_size=8"),
    *("--set", "model.decoder_depth=1", "--set", "model.decoder_width=32", "--set", "report=false"),
)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in a folder, in this process; return its exit code and what it printed."""

    def command(folder, *words):
        with no_privileges():
            code = mimcl(monkeypatch, folder, *words)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return command


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with read-only shards/ and the folder sets/, with a set that was built from them."""
    folder = tmp_path_factory.mktemp("home")
    write_train_val(folder / "images", {"ant": 20, "bee": 20}, {"ant": 3, "bee": 3})
    pack(image_folder(folder / "images"), folder / "shards", PackConfig(workers=1), on_progress=id)
    (folder / "shards").chmod(0o555)
    with pytest.MonkeyPatch.context() as patch, no_privileges():
        assert mimcl(patch, folder, *BUILD, "--out", "sets/mine") == 0
    yield folder
    (folder / "shards").chmod(0o755)


def test_shards_that_cannot_be_written_give_one_line_with_the_way_out(home, run):
    code, said = run(home, *BUILD)
    assert (code, said) == (
        1,
        "mimcl: shards/prototypes cannot be written (Permission denied); give a folder of yours with --out FOLDER, and "
        "--prototypes FOLDER later, for training\n",
    )
    assert not (home / "shards" / "prototypes").exists()
    code, said = run(home, *BUILD, "--out", "shards/new")
    assert (code, said.startswith("mimcl: shards cannot be written (Permission denied)")) == (1, True), said


def test_a_set_is_the_same_wherever_it_is(home, tmp_path):
    shutil.copytree(home / "shards", tmp_path / "shards")
    (tmp_path / "shards").chmod(0o755)
    beside, _ = build(tmp_path / "shards", BuildConfig("pixels", 4, decoder="reference"))
    for name in ("train.arrow", "centroids.npy", "prototypes.json"):
        assert (home / "sets" / "mine" / name).read_bytes() == (beside / name).read_bytes()
    assert [path.name for path in (home / "sets").iterdir()] == ["mine"]  # the workspace is gone


def test_train_plan_verify_repack_and_inspect_find_it(home, run):
    there = ("--prototypes", "sets/mine")
    code, said = run(home, *RUN, *there, "--epochs", "1", "--out", "run")
    assert code == 0, said
    code, said = run(home, "plan", "--curriculum", "proto", *there, "--epochs", "1")
    assert code == 0, said
    code, said = run(home, "verify", "shards", *there)
    assert (code, said.splitlines()[-1]) == (0, "46 images in 2 shards and 1 prototype set: all checks passed")
    code, said = run(home, "inspect", "sets/mine")
    assert (code, "4 for 40 images" in said) == (0, True)
    code, said = run(home, "repack", "shards", *there, "--out", "near")
    assert (code, said.endswith("--data near --prototypes mine\n")) == (0, True), said
    assert json.loads((home / "near" / "prototypes" / "mine" / "prototypes.json").read_text())["origin"]["name"]


def test_a_run_is_resumed_with_the_set_in_another_place_but_not_with_another_set(home, run):
    short = (*RUN, "--out", "moved", "--resume")
    assert run(home, *short, "--prototypes", "sets/mine", "--epochs", "1")[0] == 0
    shutil.copytree(home / "sets" / "mine", home / "sets" / "elsewhere")
    code, said = run(home, *short, "--prototypes", str(home / "sets" / "elsewhere"))
    assert code == 0, said
    assert run(home, *BUILD, "--seed", "1", "--out", "sets/other")[0] == 0
    code, said = run(home, *short, "--prototypes", "sets/other")
    assert (code, "the prototypes changed since" in said) == (1, True), said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            (*BUILD, "--out", "sets/mine"),
            "sets/mine exists; give another --name or --out, or --overwrite to replace it",
        ),
        ((*BUILD, "--out", "sets", "--overwrite"), "sets has other files; give a new folder with --out"),
        ((*BUILD, "--out", "images", "--overwrite"), "images has other files; give a new folder with --out"),
        (
            (*BUILD, "--out", "sets/new", "--name", "x"),
            "--name is for a set beside the shards, --out for another folder",
        ),
        (("plan", "--curriculum", "proto", "--prototypes", "sets"), "no prototypes in shards/prototypes/sets"),
        (("plan", "--curriculum", "proto", "--prototypes", "sets/gone"), "no prototypes in sets/gone"),
        (("plan", "--curriculum", "proto", "--prototypes", "./sets"), "no prototypes in sets"),
        (("plan", "--curriculum", "proto", "--prototypes", ".."), "'..' is not the name of a prototype set"),
        (("plan", "--curriculum", "proto", "--prototypes", "s3://b/set"), "is a URL; give the name of a set"),
        (("plan", "--curriculum", "proto", "--prototypes", "sets/foreign"), "was made for index"),
        (("verify", "shards", "--prototypes", "sets/foreign"), "was made for index"),
        (("repack", "shards", "--prototypes", "sets/foreign", "--out", "new"), "was made for index"),
    ],
)
def test_other_places_are_refused(home, run, words, message):
    if not (home / "sets" / "foreign").exists():
        shutil.copytree(home / "sets" / "mine", home / "sets" / "foreign")
        path = home / "sets" / "foreign" / "prototypes.json"
        about = json.loads(path.read_text()) | {"index_fingerprint": "another"}
        path.write_text(json.dumps(about))
    code, said = run(home, *words)
    assert code in (1, 2)
    assert message in said
    assert (home / "sets" / "mine" / "train.arrow").exists()


def test_a_name_that_is_also_a_folder_is_a_name(home, run, tmp_path):
    """Only a slash makes a path, so that a folder that happens to be there changes nothing."""
    shutil.copytree(home / "shards", tmp_path / "shards")
    (tmp_path / "shards").chmod(0o755)
    build(tmp_path / "shards", BuildConfig("pixels", 3, "both", decoder="reference"))
    shutil.copytree(home / "sets" / "mine", tmp_path / "both")
    shutil.copytree(home / "sets" / "mine", tmp_path / "mine")
    index = ShardIndex.load(tmp_path / "shards")
    for place, k in (("both", 3), (str(tmp_path / "both"), 4)):
        assert PrototypeSet.load(index.prototypes_folder(place), index.fingerprint).info["k"] == k
    plan = ("plan", "--recipe", "cpu_small", "--curriculum", "proto", "--epochs", "1")
    assert run(tmp_path, *plan, "--prototypes", "./both")[0] == 0
    code, said = run(tmp_path, *plan, "--prototypes", "mine")
    assert (code, said) == (
        1,
        "mimcl: no prototype set shards/prototypes/mine; if ./mine is meant, give it with the slash\n",
    )


def test_a_stopped_build_is_resumed_beside_the_set(home, tmp_path):
    config = BuildConfig("pixels", 4, decoder="reference", out=tmp_path / "set")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrototypeSet, "save", lambda self, folder: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(Exception, match=f"{tmp_path} cannot be written .No space left.; make room"):
            build(home / "shards", config)
    assert [path.name for path in tmp_path.iterdir()] == [".set.building"]
    _, found = build(home / "shards", config)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert np.isfinite(found.distance).all()


def test_a_set_that_another_process_built_meanwhile_is_not_replaced(home, tmp_path, monkeypatch):
    @contextmanager
    def waiting(folder, world):
        shutil.copytree(home / "sets" / "mine", folder / "set")
        yield

    monkeypatch.setattr("mimcl.cli.encoders.lock.lock", waiting)
    with pytest.raises(PrototypeError, match=f"^{tmp_path / 'set'} exists; give another --name or --out"):
        build(home / "shards", BuildConfig("pixels", 3, decoder="reference", out=tmp_path / "set"))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
