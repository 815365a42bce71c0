"""The usual commands without DALI, /proc, affinity masks and other things that macOS lacks."""

import pytest
from helpers.images import picture
from helpers.no_linux import mimcl_without_linux
from helpers.small_runs import FEW_PATCHES, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HINT = "decoder reference; DALI is not installed: pip install --force-reinstall --no-deps nvidia-dali"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    for number in range(48):
        (image := folder / "images" / ("val" if number < 8 else "train") / str(number % 2)).mkdir(
            parents=True, exist_ok=True
        )
        picture(number, 40, 40).save(image / f"{number}.jpg")
    run(folder, "shard", "images")
    return folder


def run(home, *arguments: str) -> str:
    done = mimcl_without_linux(home, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_prototypes_training_evaluation_and_features(home):
    for arguments in (
        ("prototypes", "build", "--features", "pixels", "--k", "4"),
        train("run", FEW_PATCHES, steps=4, decoder="auto"),
        ("eval", "knn", "run"),
        ("embed", "run", "shards", "--out", "features.npy"),
    ):
        text = run(home, *arguments)
        assert text.count("DALI is not installed") == 1, text
        assert HINT in " ".join(text.split()), text
    for arguments in (("verify", "shards", "--decode"), ("plan", "--curriculum", "proto", "--epochs", "1")):
        assert "DALI" not in run(home, *arguments)


def test_pixels_kept_in_memory(home):
    text = run(home, *train("kept", FEW_PATCHES, "data.keep_decoded=true", steps=4, decoder="auto"))
    assert "DALI" not in text


def test_the_doctor(home):
    text = run(home, "doctor", "--data", "shards", "--recipe", "cpu_small", "--seconds", "0.2")
    assert text.count("DALI") == 2, text  # a finding: its name and how to install it
    assert "decode, reference" in text
    assert "check failed" not in text
    assert "/dev/shm" not in text
    assert "not cached" not in text
