"""What a micro-batch adds to the gradient: the reconstruction, and what the masker asks for."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mimcl.model.mae import Mask, MaskedAutoencoderViT, Output, reconstruction_loss, to_patches

M = TypeVar("M", bound=Mask)  # the masks that a masker proposes
Network = TypeVar("Network", bound=nn.Module)
CompileUnit = Literal["whole", "blocks"]
_RECOMPILE_LIMIT = 64  # of torch's cache: all transformer blocks share the code of one, whatever their width and batch


class Masker(Protocol[M]):
    """Proposes masks and may learn; see `mimcl.curriculum.masking.masker` for the contract."""

    second_every: int

    def propose(self, patches: Tensor, keys: Tensor, model: MaskedAutoencoderViT, progress: Tensor) -> M: ...
    def loss(self, output: Output, mask: M) -> Tensor | None: ...
    def second_loss(self, patches: Tensor, mask: M, model: MaskedAutoencoderViT, progress: Tensor) -> Tensor | None: ...
    def after_step(self, model: nn.Module, progress: Tensor, finite: Tensor) -> None: ...
    def figures(self, output: Output, mask: M, progress: Tensor) -> dict[str, Tensor]: ...
    def parameters_with_model(self) -> Iterable[tuple[str, nn.Parameter]]: ...
    def own_parameters(self) -> Iterable[tuple[str, nn.Parameter]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class Passed(NamedTuple, Generic[M]):
    """What a micro-batch of B images went through; of all of it only the mask's scores may lead on to gradients."""

    losses: Tensor  # float32 (B,): reconstruction
    output: Output
    mask: M
    progress: Tensor


class Passes(Generic[M]):
    """The forward and backward passes of a micro-batch, in the run's precision, compiled on request."""

    def __init__(
        self,
        model: MaskedAutoencoderViT,
        masker: Masker[M],
        own: list[nn.Parameter],
        batch_size: int,
        precision: Literal["bfloat16", "float32"],
        compile_unit: CompileUnit | None,
    ) -> None:
        """`own` are the masker's trainable own parameters; losses are divided by `batch_size`, in draws.

        `compile_unit` is what torch.compile gets of the model's forward pass: all of it as one graph ("whole"), each
        transformer block by itself ("blocks"), or nothing (None). A compiled graph delivers its gradients when its
        backward pass is complete, so that only with "blocks" they can be sent while the others are computed. The
        masker's own passes are one graph each in either case.
        """
        self._model, self._own, self._batch_size = model, own, batch_size
        self._frozen = twin(model, frozen=True)
        device = model.device.type
        self._autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")
        self._attention = unfused_attention if device == "cpu" and precision == "bfloat16" else nullcontext
        self._propose, self._loss, self._second = masker.propose, masker.loss, masker.second_loss
        self._first = self._first_objective
        if compile_unit is None:
            return
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _RECOMPILE_LIMIT)
        self._propose, self._second = torch.compile(self._propose), torch.compile(self._second)
        if compile_unit == "whole":
            self._first = torch.compile(self._first)
        else:
            self._loss = torch.compile(self._loss)
            self._model = twin(model, frozen=False)  # the blocks of the model itself stay as they are, for evaluation
            for module in self._model.modules():
                if isinstance(module, Block):
                    module.compile(dynamic=False)

    def backward(self, images: Tensor, keys: Tensor, progress: Tensor, second: bool) -> Passed[M]:
        """Adds the micro-batch's share to all gradients of its step; `second`: to the masker's own as well.

        `images` are uint8 (B, 3, H, W), `keys` int64 (B,), `progress` as the masker's contract says.
        """
        with self._autocast:
            patches = to_patches(images, self._model.patch_size)
            with torch.set_grad_enabled(second), self._attention() if second else nullcontext():
                mask = self._propose(patches, keys, self._frozen, progress)
            with self._attention():
                objective, losses, output = self._first(patches, mask)
        (objective.sum() / self._batch_size).backward()
        if second:
            with self._autocast, self._attention():
                own_objective = self._second(patches, mask, self._frozen, progress)
            torch.autograd.backward(own_objective.sum() / self._batch_size, inputs=self._own)
        return Passed(losses, output, mask, progress)

    def _first_objective(self, patches: Tensor, mask: M) -> tuple[Tensor, Tensor, Output]:
        output = self._model(patches, mask)
        losses = reconstruction_loss(output.per_patch_loss, mask.mask)
        added = self._loss(output, mask)
        # What leaves with a gradient function costs a compiled backward pass, needed or not.
        return losses if added is None else losses + added, losses.detach(), Output(*(part.detach() for part in output))


def twin(model: Network, frozen: bool) -> Network:
    """A second model on the same memory, which follows every update of the first.

    A frozen one has parameters of its own on that memory, without gradients; the other has those of `model` itself.
    """
    shared = {
        id(parameter): nn.Parameter(parameter.data, requires_grad=False) if frozen else parameter
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, shared)


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Attention as plain products, in bfloat16 on the CPU.

    With its backward pass torch's fused attention takes 1.5 to 4 times as long there; without, a quarter of the time.
    """
    in_bfloat16 = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()  # the CPU heeds it as well
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(in_bfloat16)
