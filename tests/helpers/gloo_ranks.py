"""Run functions in real processes joined by gloo; the functions are here because a new process cannot import tests."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from helpers.plan_batches import make_batches, make_plan
from mimcl.api import Loader
from mimcl.api.same_on_all import same_on_all
from mimcl.cli.run.health import Health
from mimcl.curriculum.masking.random import RandomMasker
from mimcl.model import distributed
from mimcl.model.config import OptimConfig, TrainerConfig
from mimcl.model.distributed import Gradients, agree, connected, from_first, gather, gather_rows
from mimcl.model.mae import MaskedAutoencoderViT
from mimcl.model.metrics import Outcome
from mimcl.model.trainer import Trainer
from mimcl.model.world import World

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "mimcl.cli.run.health"])  # slow to import


def run_ranks(
    size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 60, device: str = "cpu"
) -> list[Any]:
    """Return what `function(rank, *arguments)` returns on each of `size` ranks; an exception as "Type: message"."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(size):
        here, there = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(target=_rank, args=(there, rank, size, port, device, function, arguments))
        process.start()
        there.close()
        started.append((process, here))
    results, end = [], time.monotonic() + timeout
    for process, here in started:
        try:
            results.append(here.recv() if here.poll(max(0, end - time.monotonic())) else "hangs")
        except EOFError:
            process.join()
            results.append(f"exit {process.exitcode}")
    for process, _ in started:
        process.join(max(0.1, end - time.monotonic()))
        process.kill()
    return results


def _rank(
    there: Any, rank: int, size: int, port: int, device: str, function: Callable[..., Any], arguments: tuple
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(size)}
    try:
        world = World(rank, size, rank, size)
        with connected(world, torch.device("cpu") if device == "cpu" else world.device(), 50):
            result = function(rank, *arguments)
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    there.send(result)
    there.close()


def exchange(rank: int) -> tuple:
    return gather("é" * rank), gather(""), from_first(rank + 5), gather(f"{'long ' * 1000}{rank}")[1][-2:]


def exchange_rows(rank: int) -> list:
    """Gather `rank` rows from each rank, (rank, 2, 1), all values equal to the rank."""
    return gather_rows(torch.full((rank, 2, 1), float(rank))).tolist()


def disagree(rank: int, odd: int) -> None:
    agree("the weather", "ab" if rank == odd else "cd")


def given_scores(rank: int, given: list) -> list | None:
    """What all ranks get if each gives its own of these lists, or None."""
    array = None if given[rank] is None else np.array(given[rank], np.float32)
    same = same_on_all("scores", array)
    return None if same is None else same.tolist()


def early_loader(rank: int, shards: Any, store: Any, how: dict) -> list[int]:
    """The draws of the first batch of a loader that is made before the processes are connected, again, through `store`.

    As a launcher that only the first process came before: it sets no variables for itself.
    """
    dist.destroy_process_group()
    del os.environ["RANK"], os.environ["WORLD_SIZE"]
    loader = Loader(shards, batch_size=12, image_size=16, decoder="reference", **how)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    return next(iter(loader)).draws.tolist()


def loader_of_seed(rank: int, shards: Any, seeds: list[int]) -> list[int]:
    """The first draws of a loader for all ranks, made with this rank's seed."""
    loader = Loader(shards, batch_size=12, image_size=16, decoder="reference", seed=seeds[rank])
    return next(iter(loader)).draws.tolist()


class Small(nn.Module):
    """Six layers in several buckets of 4 KB, with a parameter larger than a bucket and one used on request."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(24, 24) for _ in range(5))
        self.wide, self.spare = nn.Linear(24, 64), nn.Parameter(torch.ones(24))
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2, generator=generator)
        nn.init.ones_(self.spare)

    def forward(self, inputs: torch.Tensor, spare: bool) -> torch.Tensor:
        for layer in self.layers[:3]:
            inputs = torch.tanh(layer(inputs))
        inputs = inputs * self.spare if spare else inputs
        for layer in self.layers[3:]:
            inputs = torch.tanh(layer(inputs))
        return self.wide(inputs).square().sum(1)


def steps(
    rank: int, size: int, draws: int, micro_batches: int, spares: tuple[bool, ...], count: int = 2, every: int = 1
) -> dict:
    """Return the gradients of steps of `draws` draws, shared among the ranks, and the order in which buckets are sent.

    The masker's own parameter gets a gradient in one of `every` steps.
    """
    distributed._BUCKET_BYTES = 4096
    model, own = Small(), nn.Parameter(torch.ones(3))
    gradients = Gradients(list(model.parameters()), [own])
    sent, in_backward = [], []
    real = dist.all_reduce

    def noted(tensor: torch.Tensor, **options: Any) -> Any:
        sent.append(next((n for n, bucket in enumerate(gradients.buckets) if bucket is tensor), "sums"))
        return real(tensor, **options)

    dist.all_reduce = noted
    inputs = torch.randn(count, draws, 24, generator=torch.Generator().manual_seed(1))
    found = []
    for step in range(count):
        mine = inputs[step, rank * draws // size : (rank + 1) * draws // size]
        sums = torch.zeros(2, dtype=torch.float64)
        for number, part in enumerate(mine.tensor_split(micro_batches)):
            if number == micro_batches - 1:
                gradients.last_pass()
            loss = model(part, spares[rank])
            (loss.sum() / draws).backward()
            in_backward.append(len(sent))
            if step % every == 0:
                torch.autograd.backward((own * part.sum()).sum() / draws, inputs=[own])
            sums += torch.tensor([loss.sum().item() / draws, len(part)])
        gradients.finish(sums, others=step % every == 0)
        flat = torch.cat([p.grad.flatten() for p in (*model.parameters(), own)])
        found.append(flat.double().numpy())
        norm = gradients.norm().item()
        gradients.zero()
        assert not any(p.grad.any() for p in (*model.parameters(), own))
    hooks = sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())
    return {
        "gradients": found,
        "sums": sums.tolist(),
        "norm": norm,
        "sent": sent,
        "in_backward": in_backward,
        "buckets": len(gradients.buckets),
        "hooks": hooks,
    }


def backward_passes(rank: int, compile_unit: str | None) -> list[str]:
    """Return the events of a training step's backward pass in order: names of autograd nodes, "bucket" for a sent one.

    Graphs are compiled as in training except for generating kernels, which takes minutes and does not change the order.
    """
    distributed._BUCKET_BYTES = 4096
    torch.compile = partial(torch.compile, backend="aot_eager")
    model = MaskedAutoencoderViT(32, 8, width=32, depth=2, heads=2, decoder_width=32, decoder_depth=1,
                                 decoder_heads=1, norm_pix_loss=True)  # fmt: skip
    model.initialise(torch.Generator().manual_seed(0))
    config = TrainerConfig(compile=compile_unit is not None)
    sizes = {"samples": 8, "draws": 8, "batch_size": 8, "micro_batches": 1}
    unit = {"compile_unit": compile_unit} if compile_unit else {}
    trainer = Trainer(model, RandomMasker(16, 0.75), config, OptimConfig(), **sizes, **unit, precision="float32")
    events: list[str] = []
    send, backward = dist.all_reduce, torch.Tensor.backward

    def noted_send(tensor: torch.Tensor, **options: Any) -> Any:
        events.append("bucket")
        return send(tensor, **options)

    def noted_backward(objective: torch.Tensor) -> None:
        for node in nodes_of(objective):
            node.register_prehook(lambda _, name=node.name(): events.append(name))
        backward(objective)
        events.append("end")

    dist.all_reduce, torch.Tensor.backward = noted_send, noted_backward
    images = torch.randint(256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(rank)).to(torch.uint8)
    batch = SimpleNamespace(images=images, keys=torch.arange(4) + rank, position=8, bad=())
    next(trainer.steps([batch]))
    return events


def nodes_of(objective: torch.Tensor) -> list[Any]:
    """Return all nodes of the graph of `objective`."""
    found, waiting = [], [objective.grad_fn]
    while waiting:
        if (node := waiting.pop()) not in found:
            found.append(node)
            waiting += [following for following, _ in node.next_functions if following is not None]
    return found


def lose_rank_1(rank: int, where: str) -> str:
    """Kill rank 1 in the third step and keep communicating on the others."""
    model = nn.Linear(1000, 1000)
    gradients = Gradients(list(model.parameters()))
    for step in range(100):
        if step == 2 and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if where == "gather":
            gather("x")
        else:
            gradients.last_pass()
            model(torch.ones(2, 1000)).sum().backward()
            gradients.finish(torch.zeros(2))
    return "not noticed"


def watch_a_run(rank: int, size: int, folder: Any, seeds: tuple, bad: dict, nonfinite: tuple, max_bad: float) -> tuple:
    """Observe steps of 16 draws in 2 micro-batches over a plan, with a seed per rank."""
    reported: list[str] = []
    health = Health(folder, 0, 16, max_bad, rank == 0, reported.append)
    plan = make_plan(seed=seeds[rank])
    error = None
    try:
        for step, parts in enumerate(make_batches(plan, 16, 8 // size, rank, size, bad), 1):
            for batch in parts:
                health.observe(batch, torch.from_numpy(batch.draws) / 2)
            number = sum(len(samples) for draw, samples in bad.items() if draw // 16 == step - 1)
            norm = float("nan") if step in nonfinite else 1.0
            health.check([Outcome(step, 0.1, 0.5, norm, False, number)])
            if health.excess:
                return reported, health.excess
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    return reported, error
