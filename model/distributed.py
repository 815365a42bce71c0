"""Collective operations; the only file that calls torch.distributed. A single process sends nothing."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache, partial
from itertools import count

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mimcl.model.world import DistributedError, World

_BUCKET_BYTES = 25 << 20  # DDP's default: large enough for the bandwidth, small enough to overlap
_DEAD_SECONDS = 30  # without an answer from another machine's kernel: the machine or the network is down
_connections = count()  # of this process, as many as of the others
_RESTART = "start all of them again with --resume (torchrun --max-restarts does so by itself)"
_SET_INTERFACE = "between machines, set GLOO_SOCKET_IFNAME to the network interface that connects them (see `ip addr`)"


@contextmanager
def connected(world: World, device: torch.device, timeout_seconds: float) -> Iterator[None]:
    """Connect the processes for the duration of the block: nccl for tensors on GPUs, gloo for tensors on the host.

    Waiting for another process times out after `timeout_seconds`: over gloo with an error, which also reports lost
    machines; over nccl the watchdog aborts the process (SIGABRT), because the GPU's queue is blocked. Raises
    DistributedError, also when two processes use the same GPU.
    """
    if world.size == 1:
        yield
        return
    if dist.is_initialized():
        raise DistributedError(
            "this program has called init_process_group already; use mimcl's functions in a program of their own"
        )
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and int(os.environ["TORCHELASTIC_MAX_RESTARTS"]):
        # PyTorch issue 135712: torchrun's shared store keeps the addresses of the previous processes.
        raise DistributedError(
            "torchrun --max-restarts needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment: restarted "
            "processes would connect to the previous ones"
        )
    on_gpu = device.type == "cuda"
    timeout = timedelta(seconds=timeout_seconds)
    with _peers(_RESTART if world.size == world.local_size else _SET_INTERFACE):
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=_new_store(timeout),
            rank=world.rank,
            world_size=world.size,
            timeout=timeout,
        )
    barrier()  # establishes all gloo connections
    if on_gpu:
        require_own_devices(gather(str(torch.cuda.get_device_properties(device).uuid)))
        with _peers(_RESTART):
            total = torch.ones(1, device=device)
            dist.all_reduce(total)  # connects nccl, which fails for two processes on one GPU
            total.item()  # raises a failure here
    _detect_dead_machines()
    yield
    dist.destroy_process_group()  # not after an error: it would wait for processes that have ended


def _new_store(timeout: timedelta) -> dist.Store:
    """Return a store for one connection: a program may connect several times, and a used one has old addresses."""
    store = _shared_store(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], timeout)
    return dist.PrefixStore(f"connection {next(_connections)}", store)


@lru_cache
def _shared_store(host: str, port: str, timeout: timedelta) -> dist.Store:
    """Return the store at this address, which torchrun or rank 0 serves; kept, so that rank 0 goes on serving it."""
    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    return store


def is_connected() -> bool:
    """Whether this process is in a `connected` block with others."""
    return dist.is_initialized()


def current_world() -> World:
    """Return this process's place among those that torch.distributed connects, else among torchrun's."""
    if not (dist.is_available() and dist.is_initialized()):
        return World.from_environment()
    rank, size = dist.get_rank(), dist.get_world_size()
    local = {name: os.environ.get(name, "") for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    if all(value.isascii() and value.isdigit() for value in local.values()):
        return World(rank, size, *map(int, local.values()))
    return World(rank, size, rank, size)  # processes of one machine, as far as one can tell


def require_own_devices(uuids: Sequence[str]) -> None:
    """Raise DistributedError when two ranks use the same GPU; `uuids` are the GPUs' UUIDs in order of rank."""
    for rank, uuid in enumerate(uuids):
        if (first := uuids.index(uuid)) != rank:
            raise DistributedError(
                f"ranks {first} and {rank} use the same GPU ({uuid}); start one process per GPU: "
                "torchrun --nproc-per-node, srun --gpus-per-task=1"
            )


def barrier() -> None:
    """Wait until all ranks have reached this point."""
    from_first(0)


def from_first(number: int) -> int:
    """Return rank 0's number on every rank."""
    return int(_all_gather(torch.tensor([number]))[0].item())


def agree(what: str, digest: str) -> None:
    """Raise DistributedError unless all ranks have the same `digest`, hexadecimal text of the same length."""
    digests = gather(digest)
    for rank, other in enumerate(digests):
        if other != digests[0]:
            raise DistributedError(
                f"{what} differs between the processes: {digests[0]} on rank 0, {other} on rank {rank}; "
                "give all of them the same command, data and versions"
            )


def gather(text: str) -> list[str]:
    """Return the text of every rank, in order of rank."""
    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)
    sizes = [int(size) for size in _all_gather(torch.tensor([len(data)]))]
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(data)] = data
    parts = _all_gather(padded) if max(sizes) else [padded] * len(sizes)
    return [part[:size].numpy().tobytes().decode() for part, size in zip(parts, sizes, strict=True)]


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows (n, ...) of all ranks, in order of rank, on the host; n may differ between ranks."""
    counts = [int(count) for count in _all_gather(torch.tensor([len(rows)]))]
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    return torch.cat([part[:count] for part, count in zip(_all_gather(padded), counts, strict=True)])


class Gradients:
    """Gradients as views into flat buckets, which are summed over the ranks in a fixed layout and order.

    Every backward pass of a step reaches `parameters`: their buckets, in reverse order of the parameters, are sent
    while the step's last backward pass is still running. `others` are sent when the step is complete.

    Not DistributedDataParallel: maskers call parts of the model, not only the forward pass that it wraps. Also, it
    keeps the layout of its first buckets, and so the summation order after a resume, only with
    find_unused_parameters=True (and no static graph), which traverses the autograd graph at every step. And here the
    step's sums are sent along with the gradients.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], others: Sequence[nn.Parameter] = ()) -> None:
        early = list(_buckets(parameters))
        layout = [*early, *_buckets(others)]
        self.buckets = [_flat(bucket) for bucket in layout]
        self._gradients = [grad for bucket in layout for parameter in bucket if (grad := parameter.grad) is not None]
        self._lengths, self._early = [len(bucket) for bucket in layout], len(early)
        self._sent, self._works = 0, list[dist.Work]()
        self._reset()
        if dist.is_initialized():
            for number, bucket in enumerate(early):
                for parameter in bucket:
                    parameter.register_post_accumulate_grad_hook(partial(self._on_gradient, number))

    def last_pass(self) -> None:
        """Announce that the next backward pass is the last one of the step."""
        self._last_pass = True

    def finish(self, sums: Tensor, others: bool = True) -> None:
        """Complete the summation of all gradients and of `sums` over the ranks. The host waits for gloo only.

        Pass `others=False` when no backward pass of the step, on any rank, reached them: they are then not sent.
        """
        if dist.is_initialized():
            self._send(len(self.buckets) if others else self._early)
            with _peers():
                self._works.append(dist.all_reduce(sums, async_op=True))
                for work in self._works:
                    work.wait()
        self._reset()

    def zero(self) -> None:
        """Set all gradients to 0 in place, so that they stay views of the buckets."""
        for bucket in self.buckets:
            bucket.zero_()

    def norm(self) -> Tensor:
        """Return the 2-norm of all gradients together."""
        # Per parameter: a float32 sum over a whole bucket has an error of up to 0.5 % on the CPU.
        return torch.nn.utils.get_total_norm(self._gradients)

    def _on_gradient(self, number: int, _: Tensor) -> None:
        """Count a complete gradient of bucket `number`; send complete buckets, in the same order on every rank."""
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
    """Return zeros for all gradients of the bucket, and make each parameter's `grad` a view of them."""
    flat = torch.zeros(sum(p.numel() for p in bucket), device=bucket[0].device, dtype=bucket[0].dtype)
    for parameter, grad in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
        parameter.grad = grad.view_as(parameter)
    return flat


def _all_gather(tensor: Tensor) -> list[Tensor]:
    """Return the tensor of every rank; it is on the host, so it is sent over gloo."""
    if not dist.is_initialized():
        return [tensor]
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    with _peers():
        dist.all_gather(gathered, tensor, _host_group())
    return gathered


def _host_group() -> dist.ProcessGroup | None:
    """The group that sends tensors of the host: None, that of all processes, unless it is for GPUs only."""
    return None if "cpu:" in dist.get_backend_config() else _over_gloo(dist.group.WORLD)


@lru_cache(maxsize=1)
def _over_gloo(world: dist.ProcessGroup | None) -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup), "this process is in the group of all"
    return group


def _detect_dead_machines() -> None:
    """Make the kernel close connections to machines that no longer answer; by default that takes 15 minutes or more.

    A slow process is not affected: its kernel answers. Neither gloo nor the store has an option for this, and the
    kernel's own settings (net.ipv4.tcp_retries2, tcp_keepalive_*) need root on every machine.
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
        except OSError:  # closed in the meantime
            continue


@contextmanager
def _peers(advice: str = _RESTART) -> Iterator[None]:
    """Raise errors of the transport as one-line DistributedErrors."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise DistributedError(f"another process of this run does not respond ({reason[:200]}); {advice}") from error
