"""A small packed data set of two shards, and the options of a run on it."""

import shlex
import shutil

import pytest
from helpers import ranks
from helpers.images import write_flat

from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder

_OPTIONS = shlex.split("""train --data shards --recipe cpu_small --decoder reference --epochs 3 --resume
    --set data.batch_size=16 --set data.image_size=32 --set model.patch_size=16 --set model.decoder_width=32
    --set model.decoder_depth=1 --set curriculum.window=64 --set trainer.log_every_steps=5 --set report=false""")


@pytest.fixture(scope="session")
def _packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    write_flat(folder / "images", 160, width=96, height=80)
    config = PackConfig(shard_mb=1, workers=2)
    pack(image_folder(folder / "images"), folder / "shards", config, on_progress=lambda count: None)
    return folder / "shards"


@pytest.fixture
def home(_packed, tmp_path):
    """A folder with its own copy of shards/."""
    shutil.copytree(_packed, tmp_path / "shards")
    return tmp_path


@pytest.fixture
def train(home):
    """Train 30 steps to run/ in `size` processes; return the output."""

    def run(*arguments, code=0, size=1, out="run", **environment):
        before = ranks.shrink_model_and_keep_checkpoints
        ranks.run(home, *_OPTIONS, "--out", out, *arguments, code=code, size=size, **environment, before=before)
        return ranks.output(home, size)

    run.options = [*_OPTIONS, "--out", "run"]
    return run
