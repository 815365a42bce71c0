"""Several real processes: sums equal those of one process, buckets are sent in order, lost peers are errors."""

import os
import time

import numpy as np
import pytest
import torch
from helpers.gloo_ranks import backward_passes, disagree, exchange, exchange_rows, lose_rank_1, run_ranks, steps
from torch import nn

from mimcl.model.distributed import (
    Gradients,
    agree,
    barrier,
    connected,
    from_first,
    gather,
    gather_rows,
    require_own_devices,
)
from mimcl.model.world import DistributedError, World

pytestmark = pytest.mark.slow  # starts processes

DRAWS = 20


@pytest.fixture(scope="module")
def alone():
    return run_alone()


def run_alone(micro_batches=1, spare=False, count=2):
    """Run in this process; what `steps` changes is restored."""
    import torch.distributed as dist

    from mimcl.model import distributed

    kept = dist.all_reduce, distributed._BUCKET_BYTES
    try:
        return steps(0, 1, DRAWS, micro_batches, (spare,), count)
    finally:
        dist.all_reduce, distributed._BUCKET_BYTES = kept


def test_one_process_sends_nothing_and_registers_no_hook(alone):
    assert (alone["hooks"], alone["sent"]) == (0, [])
    assert gather("abc") == ["abc"]
    assert from_first(4) == 4
    agree("anything", "ab")
    barrier()
    assert gather_rows(torch.ones(2, 3)).tolist() == [[1.0] * 3] * 2
    with connected(World(), torch.device("cpu"), 1):
        assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_rows_of_all_ranks_are_in_order_even_if_one_has_none():
    assert run_ranks(3, exchange_rows) == [[[[1.0]] * 2] + [[[2.0]] * 2] * 2] * 3


@pytest.mark.parametrize(("size", "micro_batches"), [(2, 1), (3, 2)])
def test_sums_over_uneven_shares_are_those_of_one_process(alone, size, micro_batches):
    found = run_ranks(size, steps, size, DRAWS, micro_batches, (False,) * size)
    for mine in found:
        for one, other in zip(mine["gradients"], alone["gradients"], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        assert mine["norm"] == pytest.approx(alone["norm"], rel=1e-5)
        assert mine["sums"] == pytest.approx(alone["sums"], rel=1e-6)
        # Every rank has the very same bits, and sent the same in the same order.
        np.testing.assert_array_equal(mine["gradients"], found[0]["gradients"])
        assert mine["sent"] == [*range(mine["buckets"]), "sums"] * 2
    assert alone["buckets"] >= 4


@pytest.mark.slow
def test_two_runs_give_the_same_bits():
    first, again = (run_ranks(3, steps, 3, DRAWS, 1, (False,) * 3) for _ in range(2))
    np.testing.assert_array_equal(again[0]["gradients"], first[0]["gradients"])


@pytest.mark.slow
def test_buckets_are_sent_during_the_last_backward_pass_and_not_before():
    (first, _) = run_ranks(2, steps, 2, DRAWS, 3, (True, True), 1)
    early = first["buckets"] - 1  # the last bucket holds what the masker trains alone
    assert first["in_backward"] == [0, 0, early]
    assert first["sent"] == [*range(early), early, "sums"]


@pytest.mark.slow
@pytest.mark.parametrize("compile_unit", [None, "blocks", "whole"])
def test_gradients_are_sent_while_others_are_computed_unless_the_model_is_one_graph(compile_unit):
    for events in run_ranks(2, backward_passes, compile_unit, timeout=240):
        assert isinstance(events, list), events
        after_the_first = events[events.index("bucket") : events.index("end")]
        assert events.count("bucket") > 4
        computing = [name for name in after_the_first if name != "bucket" and "AccumulateGrad" not in name]
        if compile_unit == "whole":  # why several processes do not compile it so
            assert computing == []
        else:
            kind = "CompiledFunctionBackward" if compile_unit else "AddmmBackward0"
            assert sum(kind in name for name in computing) >= 2, events


@pytest.mark.slow
def test_own_parameters_of_a_masker_without_gradient_are_not_sent():
    first, second = run_ranks(2, steps, 2, DRAWS, 2, (False, False), 3, 2)
    early = first["buckets"] - 1
    complete, without = [*range(early), early, "sums"], [*range(early), "sums"]
    assert first["sent"] == second["sent"] == [*complete, *without, *complete]
    np.testing.assert_array_equal(first["gradients"], second["gradients"])
    assert not first["gradients"][1][-3:].any()
    for one, other in zip(first["gradients"], run_alone(count=3)["gradients"], strict=True):
        np.testing.assert_allclose(one[:-3], other[:-3], rtol=1e-5, atol=1e-6)
    assert first["gradients"][2][-3:].all()


@pytest.mark.slow
@pytest.mark.parametrize("spares", [(False, False), (True, False)])
def test_every_bucket_is_sent_even_if_a_parameter_has_no_gradient(spares):
    first, second = run_ranks(2, steps, 2, DRAWS, 1, spares)
    assert first["sent"] == second["sent"] == [*range(first["buckets"]), "sums"] * 2
    np.testing.assert_array_equal(first["gradients"], second["gradients"])


@pytest.mark.slow
def test_a_parameter_used_by_one_rank_gets_that_ranks_gradient():
    first, second = run_ranks(2, steps, 2, DRAWS, 1, (True, False), 1)
    alone = run_alone(spare=True)["gradients"][0]
    spare = slice(0, 24)  # a module's own parameters come before those of its parts
    assert alone[spare].all()
    assert first["gradients"][0][spare].all()
    assert not np.allclose(first["gradients"][0][spare], alone[spare])
    # Where it is not used it is as if it were 1: all other gradients are those of one process.
    np.testing.assert_allclose(first["gradients"][0][24:], alone[24:], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(first["gradients"], second["gradients"])


def test_texts_and_numbers_are_exchanged():
    first, second, third = run_ranks(3, exchange)
    assert first == second == third
    assert first == (["", "é", "éé"], ["", "", ""], 5, " 1")


@pytest.mark.slow
@pytest.mark.parametrize("odd", [0, 2])
def test_a_difference_between_ranks_is_reported_with_the_rank(odd):
    found = run_ranks(3, disagree, odd)
    assert len(set(found)) == 1
    other = 1 if odd == 0 else 2
    words = {0: "ab on rank 0, cd on rank 1", 2: "cd on rank 0, ab on rank 2"}[odd]
    assert found[0].startswith(f"DistributedError: the weather differs between the processes: {words}")
    assert f"rank {other}" in found[0]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["gather", "gradients"])
def test_a_peer_that_is_killed_is_an_error_in_one_line(where):
    began = time.monotonic()
    first, second, third = run_ranks(3, lose_rank_1, where)
    assert second == "exit -9"
    for said in (first, third):
        assert said.startswith("DistributedError: another process of this run does not respond (")
        assert "\n" not in said
        assert len(said) < 400
    assert time.monotonic() - began < 40  # less than the patience of the connection: the loss itself was noticed


def test_a_peer_that_never_connects_is_an_error(monkeypatch):
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(DistributedError, match="does not respond"),
        connected(World(1, 2), torch.device("cpu"), 0.5),
    ):
        pass


def test_torchruns_shared_store_is_an_error_only_with_restarts(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    with (
        pytest.raises(DistributedError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"),
        connected(World(0, 2), torch.device("cpu"), 0.5),
    ):
        pass
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for name, value in {"TORCHELASTIC_MAX_RESTARTS": "0", "TORCHELASTIC_USE_AGENT_STORE": "False"}.items():
        with monkeypatch.context() as local:
            local.setenv(name, value)
            with (
                pytest.raises(DistributedError, match="does not respond"),
                connected(World(1, 2), torch.device("cpu"), 0.5),
            ):
                pass


@pytest.mark.parametrize(
    ("visible", "local_rank", "number"),
    [(8, 3, 3), (1, 3, 0), (2, 3, 1)],  # all of a machine's devices; its own, as srun --gpus-per-task shows them
)
def test_a_process_selects_its_own_device(monkeypatch, visible, local_rank, number):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert World(3, 8, local_rank, 8).device() == torch.device("cuda", number)
    assert taken == [torch.device("cuda", number)]


def test_two_processes_with_the_same_device_are_an_error():
    require_own_devices(["GPU-a", "GPU-b", "GPU-c"])
    with pytest.raises(DistributedError, match="ranks 1 and 2 .*GPU-b"):
        require_own_devices(["GPU-a", "GPU-b", "GPU-b", "GPU-a"])


@pytest.mark.gpu
def test_two_real_processes_cannot_share_a_device():
    if torch.cuda.device_count() != 1:
        pytest.skip("not exactly one CUDA device")
    for said in run_ranks(2, gather, "x", device="cuda"):
        assert said.startswith("DistributedError: ranks 0 and 1 use the same GPU (")


def test_place_and_size_come_from_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert World.from_environment() == World(0, 1, 0, 1)
    for value, name in enumerate(("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"), 3):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert World.from_environment() == World(3, 4, 5, 6)


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE=x"),
        ({"RANK": "-1"}, "RANK=-1"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK=2 .*WORLD_SIZE=2"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "MASTER_ADDR and MASTER_PORT"),
    ],
)
def test_an_invalid_environment_is_an_error(monkeypatch, environment, complaint):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DistributedError, match=complaint):
        World.from_environment()


def test_gradients_stay_views_into_buckets_of_a_bounded_size():
    layers = nn.Sequential(*[nn.Linear(1000, 1000) for _ in range(20)])  # 80 MB
    gradients = Gradients(list(layers.parameters()))
    assert len(gradients.buckets) == 4
    assert all(bucket.nbytes <= 25 << 20 for bucket in gradients.buckets)
    starts = [parameter.grad.data_ptr() for parameter in layers.parameters()]
    for _ in range(2):
        layers(torch.ones(1, 1000)).sum().backward()
        expected = torch.cat([p.grad.flatten() for p in layers.parameters()]).double().norm()
        assert gradients.norm() == pytest.approx(expected.item(), rel=5e-3)  # torch adds float32 up one after another
        gradients.finish(torch.zeros(1))
        gradients.zero()
    assert starts == [parameter.grad.data_ptr() for parameter in layers.parameters()]
    assert sum(bucket.numel() for bucket in gradients.buckets) == sum(p.numel() for p in layers.parameters())


def test_no_connection_is_left_open():
    assert not torch.distributed.is_initialized()
    assert os.environ.get("WORLD_SIZE") is None


def test_a_program_that_is_connected_already_is_refused(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        message = "has called init_process_group already; use mimcl's functions in a program of their own"
        with pytest.raises(DistributedError, match=message), connected(World(0, 2, 0, 2), torch.device("cpu"), 5.0):
            pass
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("cuda", "mps", "asked", "device"),
    [
        (False, True, "1", "mps"),
        (False, True, "", "cpu"),
        (False, False, "1", "cpu"),
        (True, True, "1", "cuda:2"),
    ],
)
def test_an_apple_gpu_makes_forward_passes_only_where_asked(monkeypatch, cuda, mps, asked, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setenv("MIMCL_MPS", asked)
    assert World().inference_device() == torch.device(device)
    assert World().device().type == ("cuda" if cuda else "cpu")
