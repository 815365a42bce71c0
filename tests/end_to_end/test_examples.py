"""The programs in docs/examples run as a reader would run them, and continue exactly after a kill."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import torchruns
from helpers.images import picture
from helpers.torchruns import environment
from PIL import Image

from mimcl.api import Curriculum, Loader
from mimcl.cli.prototypes.build import BuildConfig, build
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
RECORDED = Path(__file__).parents[1] / "helpers" / "recorded_example.py"
TINTS = {"blue": (60, 60, 255), "green": (60, 255, 60), "red": (255, 60, 60)}
SIZES = {"batch_size": 12, "image_size": 16}
EPOCHS, EACH, STEPS = 8, 20, 40  # of 60 images
FLAGS = ["--batch-size", "12", "--image-size", "16", "--epochs", str(EPOCHS)]
WINDOW = ["--window", "5"]
UNTRAINED = 6.9  # the loss of a model that knows nothing of 1000 classes


def packed(home: Path, each: int, seed: int, mislabelled: int = 0) -> Path:
    """Pack images of three classes, told apart by their colour, except for some of each that have another colour."""
    for label, name in enumerate(TINTS):
        (home / "images" / name).mkdir(parents=True)
        for number in range(each):
            tint = [*TINTS.values()][(label + (number < mislabelled)) % 3]
            image = Image.blend(picture(seed + each * label + number, 40, 32), Image.new("RGB", (40, 32), tint), 0.5)
            image.save(home / "images" / name / f"{number:02d}.jpg")
    pack(image_folder(home / "images"), home / "shards", PackConfig(), on_progress=lambda count: None)
    return home / "shards"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    shards = packed(tmp_path_factory.mktemp("shards"), EACH, 0, mislabelled=2)
    build(shards, BuildConfig(features="pixels", k=3, decoder="reference"))
    return shards


@pytest.fixture(scope="module")
def plain(shards, tmp_path_factory):
    """An uninterrupted run of plain.py: its folder."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "output").write_text(run(folder, "plain", shards, "--save-every", "7"))
    return folder


def run(folder, name, *arguments, kill_at="never", processes=1) -> str:
    """Run an example in `folder` to its end, or until it has killed itself; return its output."""
    folder.mkdir(exist_ok=True)
    program = [sys.executable, RECORDED, folder, kill_at, EXAMPLES / f"{name}.py", *arguments, *FLAGS]
    command, more = [*map(str, program)], {"ACCELERATE_USE_CPU": "true"}  # one GPU cannot be that of two processes
    if processes == 1:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, env=environment(**more))
        assert done.returncode == (0 if kill_at == "never" else -signal.SIGKILL), done.stderr
        return done.stdout
    log, flags = folder / "log", ["--standalone", f"--nproc-per-node={processes}"]
    process = torchruns.start(log, flags, command, folder, **more)
    try:
        assert process.wait(200) == 0, log.read_text()
    finally:
        torchruns.kill_all(process)
    return log.read_text()


def records(folder, rank=0) -> list[tuple[int, int]]:
    """The draws of a process and their samples, by the loader of the whole run; draws made again are there again."""
    lines = np.loadtxt(folder / f"drawn-{rank}.txt", np.int64)
    return [(draw, sample_id) for length, draw, sample_id in lines.tolist() if length == STEPS]


def drawn(*folders, ranks=1) -> list[int]:
    """The sample of each draw of the run. A draw that was made again has the same one."""
    found: dict[int, int] = {}
    for draw, sample_id in (pair for folder in folders for rank in range(ranks) for pair in records(folder, rank)):
        assert found.setdefault(draw, sample_id) == sample_id
    assert sorted(found) == list(range(12 * STEPS))
    return [found[draw] for draw in range(12 * STEPS)]


def losses(output: str) -> list[float]:
    found = [float(loss) for loss in re.findall(r"loss (\S+)", output)]
    assert np.isfinite(found).all()
    return found


def test_each_has_under_60_lines_and_a_line_in_the_readme():
    programs = sorted(EXAMPLES.glob("*.py"))
    assert {path.stem for path in programs} == {
        "accelerate_loop",
        "lightning_loop",
        "plain",
        "reducible_loss",
        "two_views",
    }
    assert max(path.read_text().count("\n") for path in programs) < 60
    linked = re.findall(r"^- \[(.*)\]\(\1\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(linked) == [path.name for path in programs]


def test_the_loss_of_the_plain_loop_falls(plain):
    assert max(losses((plain / "output").read_text())) < UNTRAINED / 4


def test_the_plain_loop_continues_after_a_kill_with_the_same_draws_to_the_same_weights(shards, plain, tmp_path):
    run(tmp_path, "plain", shards, "--save-every", "7", kill_at=24)
    resumed_at = len(records(tmp_path))
    run(tmp_path, "plain", shards, "--save-every", "7")
    assert records(tmp_path)[resumed_at][0] == 21 * 12
    assert drawn(tmp_path) == drawn(plain)
    saved, expected = (torch.load(folder / "plain.pt", weights_only=True) for folder in (tmp_path, plain))
    assert saved["loader"] == expected["loader"]
    for name, tensor in expected["model"].items():
        assert torch.equal(saved["model"][name], tensor)


@pytest.mark.exhaustive
def test_lightning_continues_in_the_middle_of_an_epoch_with_the_draws_of_the_plain_loop(shards, plain, tmp_path):
    run(tmp_path, "lightning_loop", shards, "--save-every", "7", kill_at=24)
    resumed_at = len(records(tmp_path))
    output = run(tmp_path, "lightning_loop", shards, "--save-every", "7")
    assert records(tmp_path)[resumed_at][0] == 21 * 12
    assert drawn(tmp_path) == drawn(plain)
    assert "step 40: " in output
    assert losses(output)[-1] < UNTRAINED / 4


@pytest.mark.exhaustive
def test_accelerate_on_two_processes_draws_and_learns_what_one_does(shards, plain, tmp_path):
    output = run(tmp_path, "accelerate_loop", shards, "--save-every", "7", processes=2)
    assert [len(records(tmp_path, rank)) for rank in (0, 1)] == [240, 240]
    assert drawn(tmp_path, ranks=2) == drawn(plain)
    assert losses(output) == pytest.approx(losses((plain / "output").read_text()), abs=0.02)


def test_two_views_are_different_crops_and_learn_to_predict_each_other(shards, tmp_path):
    first, *_, last = losses(run(tmp_path, "two_views", shards, "--print-every", "10"))
    assert last < first
    alike = np.loadtxt(tmp_path / "views.txt")  # of an image with other colours: above 0.98
    assert len(alike) == 12 * STEPS
    assert np.mean(alike < 0.9) > 0.8


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A checkpoint of plain.py for other images of the same classes, all with the right label."""
    folder = tmp_path_factory.mktemp("reference")
    run(folder, "plain", packed(folder, 12, 5000), "--curriculum", "none")
    return folder / "plain.pt"


@pytest.fixture(scope="module")
def reducible(shards, reference, tmp_path_factory):
    """An uninterrupted run of reducible_loss.py: its folder."""
    folder = tmp_path_factory.mktemp("reducible")
    (folder / "output").write_text(run(folder, "reducible_loss", shards, reference, *WINDOW))
    return folder


@pytest.mark.exhaustive
def test_scores_that_are_updated_change_what_is_drawn(shards, reducible):
    still = Loader(
        shards,
        **SIZES,
        epochs=EPOCHS,
        scores=np.load(reducible / "scores.npy"),
        curriculum=Curriculum("anti", window=5 * 12),
        schedule=lambda progress: 0.3,
    )
    expected, found = torch.cat([batch.sample_ids for batch in still]).tolist(), drawn(reducible)
    in_force = 2 * 5 * 12  # the first update, after window 0, is one of window 2
    assert found[:in_force] == expected[:in_force]
    assert found[in_force:] != expected[in_force:]


@pytest.mark.exhaustive
def test_images_with_the_wrong_label_are_drawn_rarely_and_the_loss_falls(shards, reducible):
    index = ShardIndex.load(shards)
    wrong = [row for row in range(index.samples) if Path(index.path(row)).stem in ("00", "01")]
    assert len(wrong) == 6
    assert np.isin(drawn(reducible), wrong).mean() < 0.02  # of all images: 0.1
    first, *_, last = losses((reducible / "output").read_text())
    assert last < first / 2


@pytest.mark.exhaustive
def test_moving_scores_continue_after_a_kill_with_the_same_draws(shards, reference, reducible, tmp_path):
    run(tmp_path, "reducible_loss", shards, reference, *WINDOW, kill_at=24)
    resumed_at = len(records(tmp_path))
    run(tmp_path, "reducible_loss", shards, reference, *WINDOW)
    assert records(tmp_path)[resumed_at][0] == 20 * 12
    assert drawn(tmp_path) == drawn(reducible)


@pytest.mark.exhaustive
def test_two_processes_gather_their_losses_into_the_same_scores(shards, reference, reducible, tmp_path):
    output = run(tmp_path, "reducible_loss", shards, reference, *WINDOW, processes=2)
    found = drawn(tmp_path, ranks=2)
    assert found[:120] == drawn(reducible)[:120]  # the later scores depend on the order of sums
    first, *_, last = losses(output)
    assert last < first / 2
