"""`--balance` of train and plan: what it draws, what it refuses, and that a run resumes only with the same clusters."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from helpers.images import write_flat
from helpers.small_runs import metrics
from helpers.typed import error_line, mimcl

from mimcl.cli.config import read_yaml
from mimcl.cli.plan.plan import forecast_run
from mimcl.cli.run.folder import new_config
from mimcl.curriculum.prototypes import PrototypeSet
from mimcl.curriculum.score_set import make_score_set
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder

pytestmark = pytest.mark.slow  # trains

IMAGES = 80
SMALL = (
    *("--recipe", "cpu_small", "--decoder", "reference", "--epochs", "8", "--set", "data.batch_size=16"),
    *("--set", "data.image_size=16", "--set", "model.patch_size=8", "--set", "model.decoder_depth=1"),
    *("--set", "model.decoder_width=32", "--set", "trainer.checkpoint_every_steps=20", "--set", "report=false"),
)
BALANCED = ("--curriculum", "proto", "--balance")
CLUSTER = np.repeat(np.arange(5), [48, 16, 8, 4, 4]).astype(np.int32)
PARENTS = [0, 0, 1, 1, 2]


def write_set(shards, name, cluster=CLUSTER, parents=None):
    scores = np.random.default_rng(0).random(len(cluster))
    found = make_score_set(scores, cluster, {"name": "s"}, {"index_fingerprint": ShardIndex.load(shards).fingerprint})
    info = found.info | ({"parents": parents} if parents else {})
    replace(found, info=info).save(shards / "prototypes" / name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with shards/, the sets default, two (levels), other (clusters) and single, and a balanced run, run/."""
    folder = tmp_path_factory.mktemp("trained")
    write_flat(folder / "images", IMAGES, width=24, height=20)
    pack(image_folder(folder / "images"), folder / "shards", PackConfig(workers=1), on_progress=id)
    write_set(folder / "shards", "default")
    write_set(folder / "shards", "two", parents=PARENTS)
    write_set(folder / "shards", "other", cluster=CLUSTER[::-1].copy())
    write_set(folder / "shards", "single", cluster=np.zeros(IMAGES, np.int32))
    with pytest.MonkeyPatch.context() as patch:
        assert mimcl(patch, folder, "train", *SMALL, *BALANCED, "--prototypes", "two", "--out", "run") == 0
    return folder


@pytest.fixture
def home(trained, tmp_path):
    """A copy, with the run as if it had been stopped after half its steps."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "00000040")
    (tmp_path / "run" / "checkpoints" / "latest").write_text("00000020\n")
    return tmp_path


def test_clusters_are_drawn_by_their_mass(trained):
    counts = np.load(trained / "run" / "draw_counts.npy")
    drawn = np.bincount(CLUSTER, counts) / counts.sum()
    np.testing.assert_allclose(drawn, [1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 3], atol=0.06)  # 4 standard errors


def test_the_forecast_of_a_balanced_run_is_what_it_drew(trained, monkeypatch):
    monkeypatch.chdir(trained)
    found = forecast_run(new_config(None, read_yaml(trained / "run" / "config.yaml")))
    lines = [line for line in metrics(trained / "run") if "window" in line]
    assert "balanced over 5 clusters in 3 groups (r at most 0." in found.curriculum
    for row, line in zip(found.forecasts, lines, strict=True):
        assert row.temperature == (float("inf") if line["temperature"] is None else line["temperature"])
        assert row.effective_fraction == line["effective_fraction"]
        assert row.coverage == pytest.approx(line["coverage"], abs=0.12)  # one run is not an expectation
    assert found.forecasts[-1].max_repeats == pytest.approx(lines[-1]["max_repeats"], rel=0.4)


def test_the_summary_names_the_balance_and_inspect_too(home, monkeypatch, capsys):
    one_step = ("--epochs", "0.1", "--out", "short")
    assert mimcl(monkeypatch, home, "train", *SMALL, *BALANCED, *one_step, "--slice", "0.01") == 0
    assert mimcl(monkeypatch, home, "plan", *SMALL[:2], *BALANCED) == 0
    assert mimcl(monkeypatch, home, "inspect", "run") == 0
    out = capsys.readouterr().out
    assert "balanced over 5 clusters (r at most 0." in out
    assert "multinomial, balanced, for 1 of the run" in out


def test_r0_above_what_balance_reaches_is_named(home, monkeypatch, capsys):
    assert mimcl(monkeypatch, home, "plan", *SMALL[:2], *BALANCED, "--r0", "0.6") == 0
    assert "r0 is not below the highest value with balance" in " ".join(capsys.readouterr().out.split())


def resume(monkeypatch, home, *words):
    return mimcl(monkeypatch, home, "train", "--out", "run", "--resume", *words)


@pytest.mark.parametrize("words", [(), ("--balance",)], ids=str)
def test_a_resumed_run_draws_what_it_would_have_drawn(trained, home, words, monkeypatch):
    assert resume(monkeypatch, home, *words) == 0
    expected = np.load(trained / "run" / "draw_counts.npy")
    np.testing.assert_array_equal(np.load(home / "run" / "draw_counts.npy"), expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--no-balance",), "curriculum.balance is False but the run in run has True"),
        (("--prototypes", "default"), "the prototypes changed since"),  # the same distances and clusters, one level
        (("--prototypes", "other"), "the prototypes changed since"),  # the same distances, other clusters
        (("--prototypes", "single"), "--balance has no effect: prototype set single has a single cluster"),
    ],
    ids=str,
)
def test_a_resume_with_another_balance_is_refused(home, words, message, monkeypatch, capsys):
    assert resume(monkeypatch, home, *words) in (1, 2)
    assert message in error_line(capsys.readouterr().err)


def test_without_balance_the_clusters_do_not_matter(home, monkeypatch, capsys):
    plain = ("train", *SMALL, "--curriculum", "proto", "--out", "plain")
    assert mimcl(monkeypatch, home, *plain) == 0
    more = ("--resume", "--prototypes", "other", "--epochs", "9", "--allow-change", "trainer.epochs")
    assert mimcl(monkeypatch, home, "train", "--out", "plain", *more) == 0


@pytest.mark.parametrize("command", ["train", "plan"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--balance",), "--balance needs --curriculum proto or anti"),
        (("--set", "curriculum.balance=true"), "--balance needs --curriculum proto or anti"),
        ((*BALANCED, "--prototypes", "single"), "prototype set single has a single cluster; leave it out, or give a"),
        ((*BALANCED, "--temp-schedule", "learned"), "cannot be combined with --temp-schedule learned"),
    ],
    ids=str,
)
def test_a_balance_that_changes_nothing_is_one_line(home, command, words, message, monkeypatch, capsys):
    assert mimcl(monkeypatch, home, command, "--recipe", "cpu_small", *words) == 2
    assert message in error_line(capsys.readouterr().err)


def test_a_comparison_has_balanced_arms(home, monkeypatch, capsys):
    compare = ("compare", "--recipe", "cpu_small", "--seeds", "1", "--eval", "", "--dry-run", "--arms")
    assert mimcl(monkeypatch, home, *compare, "proto,proto+balance") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " train " in line]
    assert ["curriculum.balance=true" in line for line in lines] == [False, True]
    assert mimcl(monkeypatch, home, *compare, "proto+balance", "--prototypes", "single") == 2
    assert "single has a single cluster" in error_line(capsys.readouterr().err)
    assert mimcl(monkeypatch, home, *compare, "epochs,proto", "--set", "curriculum.balance=true") == 2
    assert "--balance needs --curriculum proto or anti" in error_line(capsys.readouterr().err)


@pytest.mark.parametrize("parents", [[0, 1], ["0"] * 5, [0, 1, 2, 3, 99], [0, 1, 2, 3, -1], {"0": 1}, [0.0] * 5, []])
def test_groups_that_do_not_fit_are_a_damaged_set(home, parents, monkeypatch, capsys):
    path = home / "shards" / "prototypes" / "two" / "prototypes.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parents": parents}))
    words = ("plan", "--recipe", "cpu_small", *BALANCED, "--prototypes", "two")
    assert mimcl(monkeypatch, home, *words) == 1
    assert "prototypes/two is damaged (parents are not a group for each cluster)" in error_line(capsys.readouterr().err)


def test_the_groups_are_those_that_were_stored(trained):
    found = PrototypeSet.load(trained / "shards" / "prototypes" / "two", None)
    assert found.parents.tolist() == PARENTS
