"""Several processes as one: the only file that calls torch.distributed. With a single process nothing is sent."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

_BUCKET_BYTES = 25 << 20  # as much as DDP sends at once: large enough for the bandwidth, small enough to overlap
_DEAD_SECONDS = 30  # without any sign of life from another machine's kernel: it, or the way to it, is gone
_RESTART = "start all of them again with --resume (torchrun --max-restarts does so by itself)"
_NAME_THE_DEVICE = "between machines, set GLOO_SOCKET_IFNAME to the network device that joins them (`ip addr` lists it)"


class DistributedError(Exception):
    """The processes lost one another, or do not do the same; one line that says which."""


@dataclass(frozen=True)
class World:
    """A process's place among those that train together: its rank of `size`, its number on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def from_environment(cls) -> World:
        """As torchrun's RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE say; where it is silent, one process.

        Raises DistributedError for an environment that torchrun does not make.
        """
        defaults = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        said = {name: os.environ.get(name, default) for name, default in defaults.items()}
        if wrong := [f"{name}={value}" for name, value in said.items() if not (value.isascii() and value.isdigit())]:
            raise DistributedError(f"the environment has {wrong[0]}, which is no number; unset it, or use torchrun")
        world = cls(*map(int, said.values()))
        if not world.rank < world.size:
            raise DistributedError(f"the environment has RANK={world.rank} of WORLD_SIZE={world.size}; use torchrun")
        if world.size > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise DistributedError(
                f"the environment has WORLD_SIZE={world.size} but no MASTER_ADDR and MASTER_PORT; unset it, or use "
                "torchrun"
            )
        return world

    def device(self) -> torch.device:
        """This process's own CUDA device, which becomes the current one; the CPU where there is none.

        A launcher may show each process all devices of the machine, or only its own (srun --gpus-per-task=1).
        """
        if not torch.cuda.is_available():
            return torch.device("cpu")
        number = self.local_rank % torch.cuda.device_count() if self.size > 1 else torch.cuda.current_device()
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
        return device


@contextmanager
def connected(world: World, device: torch.device, timeout_seconds: float) -> Iterator[None]:
    """Joins the processes while the block lasts: nccl between GPUs, gloo for what lies on the host.

    A process that waits `timeout_seconds` for another one gives up: with an error over gloo, which also notices that a
    machine is gone; over nccl its watchdog aborts the process (SIGABRT), since nothing can be done with the GPU's queue
    any more. Raises DistributedError, also where two processes have the same GPU.
    """
    if world.size == 1:
        yield
        return
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and int(os.environ["TORCHELASTIC_MAX_RESTARTS"]):
        # PyTorch issue 135712: the store that torchrun shares still has the addresses of the processes before.
        raise DistributedError(
            "after a restart torchrun's processes would look for those that are gone: start torchrun --max-restarts "
            "with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment"
        )
    on_gpu = device.type == "cuda"
    with _peers(_RESTART if world.size == world.local_size else _NAME_THE_DEVICE):
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            timeout=timedelta(seconds=timeout_seconds),
        )
    barrier()  # afterwards all connections over gloo stand
    if on_gpu:
        require_own_devices(gather(str(torch.cuda.get_device_properties(device).uuid)))
        with _peers(_RESTART):
            total = torch.ones(1, device=device)
            dist.all_reduce(total)  # connects nccl, which two processes on a GPU cannot do
            total.item()  # so that a failure comes out here
    _notice_dead_machines()
    yield
    dist.destroy_process_group()  # not after an error: it would wait for a process that is gone


def is_connected() -> bool:
    """Whether this process has joined others, as in a `connected` block."""
    return dist.is_initialized()


def require_own_devices(uuids: Sequence[str]) -> None:
    """Raises DistributedError where two ranks have the same GPU; `uuids` are those of the ranks' GPUs, in order."""
    for rank, uuid in enumerate(uuids):
        if (first := uuids.index(uuid)) != rank:
            raise DistributedError(
                f"ranks {first} and {rank} have the same GPU ({uuid}); start one process for each GPU of a machine: "
                "torchrun --nproc-per-node, srun --gpus-per-task=1"
            )


def barrier() -> None:
    """Waits until all ranks are here."""
    from_first(0)


def from_first(number: int) -> int:
    """Rank 0's number, on every rank."""
    return _gathered(torch.tensor([number]))[0].item()


def agree(what: str, digest: str) -> None:
    """Raises DistributedError unless all ranks have the same `digest`, hexadecimal text of one length."""
    digests = gather(digest)
    for rank, other in enumerate(digests):
        if other != digests[0]:
            raise DistributedError(
                f"{what} differs between the processes: {digests[0]} on rank 0, {other} on rank {rank}; "
                "give all of them the same command, data and versions"
            )


def gather(text: str) -> list[str]:
    """Every rank's text, in order of rank."""
    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)
    sizes = [size.item() for size in _gathered(torch.tensor([len(data)]))]
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(data)] = data
    parts = _gathered(padded) if max(sizes) else [padded] * len(sizes)
    return [part[:size].numpy().tobytes().decode() for part, size in zip(parts, sizes, strict=True)]


def gather_rows(rows: Tensor) -> Tensor:
    """The rows (n, ...) of all ranks, in order of rank, on the host; n may differ."""
    counts = [count.item() for count in _gathered(torch.tensor([len(rows)]))]
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    return torch.cat([part[:count] for part, count in zip(_gathered(padded), counts, strict=True)])


class Gradients:
    """Gradients as views into flat buckets that are summed over the ranks, in a layout and order that never change.

    `parameters` are those that every backward pass of a step reaches: their buckets, in reverse order of the
    parameters, are sent while the step's last backward pass still runs. `others` follow when the step is complete.

    Why not DistributedDataParallel: maskers call parts of the model, not only the forward pass that it wraps. It keeps
    the layout of its first buckets, and so the order of summation after a resume, only with
    find_unused_parameters=True (and no static graph), which walks the autograd graph at every step. And the step's
    sums travel with the gradients here.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], others: Sequence[nn.Parameter] = ()) -> None:
        early = list(_buckets(parameters))
        layout = [*early, *_buckets(others)]
        self.buckets = [_flat(bucket) for bucket in layout]
        self._gradients = [parameter.grad for bucket in layout for parameter in bucket]
        self._lengths, self._early = [len(bucket) for bucket in layout], len(early)
        self._sent, self._last_pass, self._works = 0, False, []
        self._reset()
        if dist.is_initialized():
            for number, bucket in enumerate(early):
                for parameter in bucket:
                    parameter.register_post_accumulate_grad_hook(partial(self._arrived, number))

    def last_pass(self) -> None:
        """The next backward pass is the step's last."""
        self._last_pass = True

    def finish(self, sums: Tensor, others: bool = True) -> None:
        """Completes the summation of all gradients, and of `sums`, over the ranks. The host waits for gloo only.

        `others` is false where no backward pass of the step, on any rank, reached the others: zeros are not sent.
        """
        if dist.is_initialized():
            self._send(len(self.buckets) if others else self._early)
            with _peers():
                self._works.append(dist.all_reduce(sums, async_op=True))
                for work in self._works:
                    work.wait()
        self._reset()

    def zero(self) -> None:
        """Sets all gradients to 0, in place: they stay where the buckets are."""
        for bucket in self.buckets:
            bucket.zero_()

    def norm(self) -> Tensor:
        """The 2-norm of all gradients together."""
        # By parameter: a float32 sum over a whole bucket is off by up to half a percent on the CPU.
        return torch.nn.utils.get_total_norm(self._gradients)

    def _arrived(self, number: int, _: Tensor) -> None:
        """A gradient of bucket `number` is complete. Buckets leave in order, on every rank the same."""
        if not self._last_pass:
            return
        self._missing[number] -= 1
        complete = self._sent
        while complete < len(self._missing) and self._missing[complete] == 0:
            complete += 1
        self._send(complete)

    def _send(self, until: int) -> None:
        with _peers():
            for bucket in self.buckets[self._sent : until]:
                self._works.append(dist.all_reduce(bucket, async_op=True))
        self._sent = max(self._sent, until)

    def _reset(self) -> None:
        self._sent, self._last_pass, self._works = 0, False, []
        self._missing = list(self._lengths)


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in reversed(parameters):
        if bucket and size + parameter.nbytes > _BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.nbytes
    if bucket:
        yield bucket


def _flat(bucket: list[nn.Parameter]) -> Tensor:
    """Zeros for all gradients of the bucket; each parameter's `grad` becomes a view into them."""
    flat = torch.zeros(sum(p.numel() for p in bucket), device=bucket[0].device, dtype=bucket[0].dtype)
    for parameter, grad in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
        parameter.grad = grad.view_as(parameter)
    return flat


def _gathered(tensor: Tensor) -> list[Tensor]:
    """The tensor of every rank; on the host, so over gloo."""
    if not dist.is_initialized():
        return [tensor]
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    with _peers():
        dist.all_gather(gathered, tensor)
    return gathered


def _notice_dead_machines() -> None:
    """Lets the kernel end connections to machines that vanished without a word; by itself it waits for hours.

    A process that only takes its time is not concerned: its kernel answers. Neither gloo nor the store have an option.
    """
    for name in os.listdir("/proc/self/fd") if hasattr(socket, "TCP_USER_TIMEOUT") else ():
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.type == socket.SOCK_STREAM and connection.family in (socket.AF_INET, socket.AF_INET6):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _DEAD_SECONDS // 3)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _DEAD_SECONDS // 6)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _DEAD_SECONDS)
        except OSError:  # closed meanwhile
            continue


@contextmanager
def _peers(advice: str = _RESTART) -> Iterator[None]:
    """Errors of the transport in one line."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise DistributedError(f"another process of this run does not answer ({reason[:200]}); {advice}") from error
