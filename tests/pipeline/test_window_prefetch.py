"""The stream announces each stretch to its store once, in order, one ahead of its use; and the reads' statistics."""

import itertools
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
from helpers.streams import BATCH, DRAWS, WINDOW, Windows, make_stream

from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.plan import Plan
from mimcl.pipeline.augment import hash64
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.read_plan import plan_reads

CUTS = [0, 20, 52, 64]


class Stretches(Windows):
    def window(self, number):
        return replace(super().window(number), stretches=np.array(CUTS))


@pytest.fixture(scope="module")
def index(labelled):
    return ShardIndex.load(labelled[1])


def recorded_stream(index, **options):
    """A stream in order, and its store's calls: ("prefetch", ReadPlan) and ("read", sample ids)."""
    stream, calls = make_stream(index, Stretches(index.samples), ordered=True, **options), []
    store = stream._samples.store
    prefetch, read = store.prefetch, store.read
    store.prefetch = lambda reads: (calls.append(("prefetch", reads)), prefetch(reads))[1]
    store.read = lambda ids: (calls.append(("read", ids)), read(ids))[1]
    return stream, calls


def stretches_of(index, ours=slice(0, BATCH), start=0):
    """The first draw and the ids of each stretch from draw `start` on, for a part of each batch."""
    plan, found = Stretches(index.samples), []
    for number in range(DRAWS // WINDOW):
        ids = plan.window(number).sample_ids
        for a, b in itertools.pairwise(CUTS):
            draws = np.arange(WINDOW * number + a, WINDOW * number + b)
            mine = (draws % BATCH >= ours.start) & (draws % BATCH < ours.stop)
            if draws[-1] >= start:
                found.append((int(draws[0]), ids[a:b][mine]))
    return found


@pytest.mark.parametrize("start", [0, BATCH, 3 * BATCH])
@pytest.mark.parametrize("micro", [8, BATCH])
def test_each_stretch_is_announced_in_order_while_the_one_before_is_used(index, start, micro):
    stream, calls = recorded_stream(index, start=start, micro=micro)
    assert sum(len(batch.draws) for batch in stream) == DRAWS - start
    wanted = stretches_of(index, start=start)
    reported = [reads for what, reads in calls if what == "prefetch"]
    assert len(reported) == len(wanted)
    for reads, (_, ids) in zip(reported, wanted, strict=True):
        expected = plan_reads(index, ids)
        for name in ("shard", "start", "stop", "sample_ids", "first"):
            np.testing.assert_array_equal(getattr(reads, name), getattr(expected, name))
    known, draw = 0, start
    for what, of in calls:
        if what == "prefetch":
            known += 1
            # Not before the micro-batch that begins the previous stretch.
            before = wanted[max(0, known - 2)][0]
            assert before < draw + micro
        else:
            draw += len(of)
            assert known == len(wanted) or wanted[known][0] >= draw  # everything read was announced


def test_the_ranks_of_a_machine_plan_the_same_reads(index):
    figures = {}
    for rank, ours in enumerate([slice(0, 16)] * 2 + [slice(16, 32)] * 2):
        stream, calls = recorded_stream(index, rank=rank, world_size=4, local_size=2)
        found = {batch.window.number: batch.read_stats for batch in stream}
        reported = [reads for what, reads in calls if what == "prefetch"]
        wanted = stretches_of(index, ours)
        assert [r.sample_ids.tolist() for r in reported] == [np.unique(ids).tolist() for _, ids in wanted if len(ids)]
        for number, figure in found.items():
            of_window = [ids for first, ids in wanted if first // WINDOW == number]
            reads, distinct = [plan_reads(index, ids) for ids in of_window], np.unique(np.concatenate(of_window))
            assert figure.needed == index.nbytes[distinct].sum()
            assert figure.fetched == sum(r.fetched for r in reads)
            assert figure.requests == sum(len(r.start) for r in reads)
            assert figure.shards == len(np.unique(index.shard[distinct]))
            assert figure.amplification == figure.fetched / figure.needed
        figures[rank] = found
    assert figures[0] == figures[1] != figures[2] == figures[3]


def test_read_stats_are_of_whole_windows_wherever_the_stream_starts(index):
    whole, later = (
        {batch.window.number: batch.read_stats for batch in recorded_stream(index, start=start)[0]}
        for start in (0, 3 * BATCH)
    )
    assert later == {number: figures for number, figures in whole.items() if number}


def test_random_reads_of_local_shards_are_neither_planned_nor_announced(index):
    stream = make_stream(index, Stretches(index.samples))
    stream._samples.store.prefetch = pytest.fail
    assert {batch.read_stats for batch in stream} == {None}


def test_a_shard_without_draws_is_never_opened(labelled, tmp_path):
    """Only the nearest samples are drawn at this temperature; the other shards are missing."""
    index = ShardIndex.load(shutil.copytree(labelled[1], tmp_path / "copy"))
    near = index.shard == 1
    plan = Plan(
        CurriculumConfig(name="proto", temp_schedule="constant", temperature=1e-3, order="shard", window=WINDOW),
        samples=index.samples,
        distances=(~near).astype(np.float32),
        draws=DRAWS,
        batch_size=BATCH,
        seed=0,
        hash64=hash64,
        shards=index.shard,
    )
    for number, shard in enumerate(index.shards):
        if number != 1:
            (index.root / shard["name"]).unlink()
    batches = list(make_stream(index, plan, ordered=True))
    assert sum(len(batch.draws) for batch in batches) == DRAWS
    assert {int(shard) for batch in batches for shard in index.shard[batch.sample_ids]} == {1}
    assert {batch.read_stats.shards for batch in batches} == {1}
    uniform = replace(plan.config, name="none", temp_schedule="cosine")
    sizes = {"samples": index.samples, "draws": DRAWS, "batch_size": BATCH}
    every = Plan(uniform, distances=None, seed=0, hash64=hash64, shards=index.shard, **sizes)
    with pytest.raises(DataError, match=r"train-00000\d.tar cannot be read"):  # the check can fail
        list(make_stream(index, every, ordered=True))


def test_the_thread_that_advises_the_kernel_ends(index, tmp_path):
    store = make_stream(index)._samples.store
    for _, ids in stretches_of(index):
        store.prefetch(plan_reads(index, ids))
    store._advising.join(10)
    assert not [thread for thread in threading.enumerate() if thread.name == "advise"]
    # A missing shard is reported when it is read.
    gone = replace(index, root=tmp_path)
    lost = make_stream(gone, ordered=True)._samples.store
    lost.prefetch(plan_reads(gone, np.arange(5)))
    lost._advising.join(10)
    assert not lost._advising.is_alive()
