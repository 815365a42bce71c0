"""What --recipe auto chooses, for data sets and machines of all sizes."""

import pytest

from mimcl.cli.auto_recipe import choose
from mimcl.cli.run.device import Machine
from mimcl.model.world import World
from mimcl.pipeline.batch_shares import BatchShares

CPU, GPU = Machine(False, 8 << 30), Machine(True, 80 << 30)
SAMPLES, SIDES = (1, 7, 64, 400, 3000, 50_000, 1_281_167), (28, 32, 64, 300, 500)


@pytest.mark.parametrize(
    ("samples", "side", "machine", "name"),
    [
        *((samples, side, machine, "cifar_tiny") for samples in SAMPLES for side in (28, 32) for machine in (CPU, GPU)),
        *((samples, side, CPU, "cpu_small") for samples in SAMPLES for side in (64, 300, 500)),
        *((samples, side, GPU, "cpu_small") for samples in (1, 7, 64, 400, 3000) for side in (64, 300, 500)),
        *((samples, side, GPU, "mae_b16") for samples in (50_000, 1_281_167) for side in (64, 300, 500)),
        (1_281_167, 500, Machine(True, 6 << 30), "cpu_small"),
    ],
)
def test_the_recipe_depends_on_images_and_machine(samples, side, machine, name):
    assert choose(samples, side, machine).name == name


@pytest.mark.parametrize("machine", [CPU, GPU])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("samples", SAMPLES)
def test_batch_and_length_fit(samples, side, machine):
    config = choose(samples, side, machine).config({})
    batch, epochs = config.data.batch_size, config.trainer.epochs
    assert batch <= max(samples // 8, 1)
    assert batch & (batch - 1) == 0
    assert config.data.micro_batch_size <= batch
    assert epochs * samples / batch >= 1000 or epochs == 800
    if not machine.cuda:
        assert epochs * samples <= 2.1e6


@pytest.mark.parametrize(
    ("samples", "side", "machine", "line"),
    [
        (
            400,
            32,
            CPU,
            "recipe auto: cifar_tiny, because the images are small (32 px); batch 32, 200 epochs: 2,500 steps on 400 "
            "images",
        ),
        (
            400,
            500,
            CPU,
            "recipe auto: cpu_small, because there is no GPU; batch 32, 80 epochs: 1,000 steps on 400 images",
        ),
        (
            1_281_167,
            500,
            GPU,
            "recipe auto: mae_b16, because there is a GPU with 85.9 GB, and the images have 500 px; batch 4,096, 800 "
            "epochs: 250,228 steps on 1,281,167 images",
        ),
        (
            400,
            500,
            GPU,
            "recipe auto: cpu_small, because 400 images are too few for a ViT-B; batch 32, 80 epochs: 1,000 steps on "
            "400 images",
        ),
    ],
)
def test_the_line_says_what_and_why(samples, side, machine, line):
    assert choose(samples, side, machine).line == line


@pytest.mark.parametrize(
    ("gigabytes", "micro_batch"), [(8, 16), (16, 64), (24, 128), (40, 128), (48, 256), (80, 256), (141, 256)]
)
def test_a_smaller_gpu_takes_smaller_micro_batches(gigabytes, micro_batch):
    chosen = choose(1_281_167, 500, Machine(True, gigabytes << 30))
    assert chosen.config({}).data.micro_batch_size == micro_batch
    assert chosen.config({}).data.batch_size == 4096


def test_a_host_with_little_memory_takes_smaller_micro_batches():
    small, tiny = (choose(50_000, 32, Machine(False, size << 20)).config({}) for size in (1024, 100))
    assert (small.data.micro_batch_size, tiny.data.micro_batch_size) == (128, 1)


def test_values_that_are_given_stay():
    given = {"data.batch_size": 100, "trainer.epochs": 3.0}
    chosen = choose(400, 300, CPU, given)
    assert (chosen.config(given).data.batch_size, chosen.config(given).trainer.epochs) == (100, 3.0)
    assert "batch 100, 3 epochs: 12 steps" in chosen.line
    assert chosen.values == {}
    longer = choose(400, 300, CPU, {"data.batch_size": 50})
    assert longer.values == {
        "data.micro_batch_size": 50,
        "trainer.epochs": 130,
        "chosen_by_auto": "data.micro_batch_size,trainer.epochs",
    }


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("group", [1, 24, 32])
@pytest.mark.parametrize("samples", SAMPLES)
def test_batches_can_be_divided_among_groups_and_processes(samples, group, processes):
    data = choose(samples, 300, CPU, group=group, processes=processes).config({}).data
    world = World(size=processes, local_size=processes)
    BatchShares(data.batch_size, data.micro_batch_size, 0, world.size, world.local_size, group)
