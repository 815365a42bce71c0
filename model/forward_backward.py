"""Forward and backward passes of a micro-batch: the reconstruction loss, and the losses of a masker that learns."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from mimcl.model.autoencoder import Mask, MaskedAutoencoder, Output, removed_patches
from mimcl.model.block import Block
from mimcl.model.cross_mae import CrossBlock
from mimcl.model.mae import reconstruction_loss, to_patches

M = TypeVar("M", bound=Mask)  # the masks that a masker proposes
Network = TypeVar("Network", bound=nn.Module)
CompileUnit = Literal["whole", "blocks"]
_RECOMPILE_LIMIT = 64  # per code object; all transformer blocks share one, whatever their width and batch


class Masker(Protocol[M]):
    """Proposes masks and may learn; see `mimcl.curriculum.masking.masker` for the contract."""

    second_every: int

    def predicted(self, mask: M, keys: Tensor, share: float) -> Tensor: ...
    def propose(self, patches: Tensor, keys: Tensor, model: MaskedAutoencoder, progress: Tensor) -> M: ...
    def loss(self, output: Output, mask: M) -> Tensor | None: ...
    def second_loss(self, patches: Tensor, mask: M, model: MaskedAutoencoder, progress: Tensor) -> Tensor | None: ...
    def after_step(self, model: nn.Module, progress: Tensor, finite: Tensor) -> None: ...
    def figures(self, output: Output, mask: M, progress: Tensor) -> dict[str, Tensor]: ...
    def parameters_with_model(self) -> Iterable[tuple[str, nn.Parameter]]: ...
    def own_parameters(self) -> Iterable[tuple[str, nn.Parameter]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class PassResult(NamedTuple, Generic[M]):
    """The results for a micro-batch of B images. Only the mask's scores may carry gradients."""

    losses: Tensor  # float32 (B,): reconstruction
    output: Output
    mask: M
    progress: Tensor


class ForwardBackward(Generic[M]):
    """Runs the forward and backward passes of a micro-batch, in the run's precision, optionally compiled."""

    def __init__(
        self,
        model: MaskedAutoencoder,
        masker: Masker[M],
        own: list[nn.Parameter],
        batch_size: int,
        precision: Literal["bfloat16", "float32"],
        compile_unit: CompileUnit | None,
    ) -> None:
        """`own` are the masker's trainable own parameters; losses are divided by `batch_size`, in draws.

        `compile_unit` selects what torch.compile compiles in the model's forward pass: everything as one graph
        ("whole"), each transformer block separately ("blocks"), or nothing (None). A compiled graph delivers its
        gradients only when its backward pass is complete: only with "blocks" can gradients be sent while others are
        computed. The masker's own passes are compiled as one graph each in both cases.
        """
        self._model, self._own, self._batch_size = model, own, batch_size
        self._frozen = twin(model, frozen=True)
        device = model.device.type
        self._autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")
        self._propose, self._loss, self._second = masker.propose, masker.loss, masker.second_loss
        self._predicted = masker.predicted
        self._first = self._first_objective
        if compile_unit is None:
            return
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _RECOMPILE_LIMIT)
        # Not dynamic: a graph for each size of images and micro-batches, of which there are few, is faster.
        compiled = partial(torch.compile, dynamic=False)
        self._propose, self._second = compiled(self._propose), compiled(self._second)
        if compile_unit == "whole":
            self._first = compiled(self._first)
        else:
            self._loss = compiled(self._loss)
            self._model = twin(model, frozen=False)  # evaluation uses the model itself, which stays uncompiled
            for module in self._model.modules():
                if isinstance(module, Block | CrossBlock):
                    module.compile(dynamic=False)

    def backward(self, images: Tensor, keys: Tensor, progress: Tensor, second: bool) -> PassResult[M]:
        """Add the micro-batch's share to the gradients of its step; if `second`, also to those of `own`.

        `images` are uint8 (B, 3, H, W), `keys` int64 (B,), `progress` as in the masker's protocol.
        """
        with self._autocast:
            patches = to_patches(images, self._model.patch_size)
            with torch.set_grad_enabled(second):
                mask = self._propose(patches, keys, self._frozen, progress)
            objective, losses, output = self._first(patches, mask, keys)
        (objective.sum() / self._batch_size).backward()
        if second:
            with self._autocast:
                own_objective = self._second(patches, mask, self._frozen, progress)
            assert own_objective is not None, "a masker with own parameters has a second loss"
            torch.autograd.backward(own_objective.sum() / self._batch_size, inputs=self._own)
        return PassResult(losses, output, mask, progress)

    def _first_objective(self, patches: Tensor, mask: M, keys: Tensor) -> tuple[Tensor, Tensor, Output]:
        share = self._model.predict_share
        ids = removed_patches(mask) if share == 1 else self._predicted(mask, keys, share)
        output = self._model(patches, mask, ids)
        losses = reconstruction_loss(output, mask.mask)
        added = self._loss(output, mask)
        # Detached: a compiled graph computes a backward pass for every output with a gradient function, used or not.
        objective = losses if added is None else losses + added
        return objective, losses.detach(), Output._make(part if part is None else part.detach() for part in output)


def twin(model: Network, frozen: bool) -> Network:
    """Return a copy of the model that shares its memory, also of buffers, and so follows every update.

    A frozen copy has its own parameters without gradients; otherwise the parameters are those of `model` itself.
    """
    shared = {
        id(parameter): nn.Parameter(parameter.data, requires_grad=False) if frozen else parameter
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, shared | {id(buffer): buffer for buffer in model.buffers()})
