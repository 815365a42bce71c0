"""How many processes pack: as many as asked for, else by the size of the data."""

import pytest

from mimcl.pipeline.packing.pack_config import PackConfig

GB = 10**9


@pytest.mark.parametrize(
    ("nbytes", "cores", "expected"),
    [(0, 8, 1), (GB - 1, 8, 1), (2 * GB - 1, 8, 1), (2 * GB, 8, 2), (5 * GB, 8, 5), (150 * GB, 8, 8), (5 * GB, 1, 1)],
)
def test_copying_takes_a_process_for_each_gigabyte(nbytes, cores, expected):
    assert PackConfig(cores=cores).workers_for(nbytes) == expected


@pytest.mark.parametrize("options", [{"short_side": 256}, {"decode": True}])
@pytest.mark.parametrize(("megabytes", "expected"), [(1, 1), (39, 1), (40, 2), (600, 8)])
def test_decoding_takes_more(options, megabytes, expected):
    assert PackConfig(cores=8, **options).workers_for(megabytes * 10**6) == expected


@pytest.mark.parametrize("workers", [1, 2, 30])
def test_a_given_number_is_used(workers):
    assert PackConfig(workers=workers, cores=4).workers_for(0) == workers
    assert PackConfig(workers=workers, cores=4).workers_for(100 * GB) == workers


@pytest.mark.parametrize("name", ["shard_mb", "workers", "cores"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        PackConfig(**{name: 0})
