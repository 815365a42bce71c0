"""Hard patches mining (HPM: Wang et al., CVPR 2023, arXiv 2304.05919): remove patches that a teacher finds hard."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mimcl.curriculum.masking.loss_prediction import (
    LossPredictor,
    absolute_loss,
    loss_predictor,
    ranking_accuracy,
    ranking_loss,
)
from mimcl.curriculum.masking.mask import Mask, agreement, keep_lowest, kept_patches
from mimcl.curriculum.masking.masker import Autoencoder, Masker, Output
from mimcl.curriculum.masking.masking_config import HardPatchesConfig
from mimcl.curriculum.masking.schedule import MaskingSchedule
from mimcl.curriculum.masking.uniforms import uniforms

_LOSSES = {"relative": ranking_loss, "absolute": absolute_loss}
# By a teacher, which reconstructs nothing; the last one is in cross-attention decoders only.
_UNUSED = ("mask_token", "decoder_blocks", "decoder_norm", "decoder_pred", "decoder_mixture")
_ROUNDING = 1e-9  # patches: a whole number of them may be computed slightly too small


class Teacher(nn.Module):
    """An exponential moving average of the model and its loss predictor, applied to whole images, without gradients."""

    def __init__(self, model: Autoencoder, predictor: LossPredictor) -> None:
        super().__init__()
        self.model, self.predictor = copy.deepcopy(model), copy.deepcopy(predictor)
        for name in _UNUSED:
            if hasattr(self.model, name):
                delattr(self.model, name)
        self.requires_grad_(False)
        pairs = [*_pairs(self.model, model), *_pairs(self.predictor, predictor)]
        self._averages, self._sources = (list(column) for column in zip(*pairs, strict=True))

    def forward(self, patches: Tensor) -> Tensor:
        """Map patches (B, L, P) to the predicted loss of each, float32 (B, L)."""
        latent = self.model.encode(self.model.embed(patches))
        own_input = self.predictor.input
        return self.predictor(own_input(latent, None) if own_input else self.model.to_decoder(latent, None))

    @torch.no_grad()
    def follow(self, rate: Tensor) -> None:
        """Move by `rate`, 0-d float32 on the device, towards model and predictor; at 0 every bit stays."""
        # The rate is a tensor, since the host does not know it; on a CPU lerp is 2.4 times as fast as product and sum.
        torch._foreach_lerp_(self._averages, self._sources, [rate] * len(self._averages))


class HardPatchesMasker(Masker):
    """A teacher predicts the patches' losses: some of the removed patches are the hardest, the others random.

    The loss predictor is trained with the model, and its gradient reaches the encoder; the teacher is an average of
    both over the steps.
    """

    def __init__(
        self,
        config: HardPatchesConfig,
        model: Autoencoder,
        mask_ratio: float,
        schedule: MaskingSchedule,
        seed: int,
    ) -> None:
        """Raises ValueError if the ratio keeps or removes no patch of `model`."""
        super().__init__()
        self._config, self._mask_ratio, self._schedule = config, mask_ratio, schedule
        kept_patches(model.num_patches, mask_ratio)  # may raise ValueError
        share = config.momentum_share
        self._momentum_epochs = config.momentum_epochs if share is None else share * schedule.epochs
        self.predictor = loss_predictor(model, config.predictor_depth or len(model.decoder_blocks), seed)
        self.teacher = Teacher(model, self.predictor)

    @torch.no_grad()
    def propose(self, patches: Tensor, keys: Tensor, model: Autoencoder, progress: Tensor) -> Mask:
        scores = self.teacher(patches)
        count = scores.shape[1]
        removed = count - kept_patches(count, self._mask_ratio)
        hardest_first = scores.argsort(dim=1, descending=True, stable=True)
        places = torch.arange(count, device=scores.device).expand_as(hardest_first)
        rank = torch.empty_like(hardest_first).scatter_(1, hardest_first, places)
        # Noise is below 1: the hardest patches come last, in random order.
        noise = uniforms(keys, count) + (rank < self._hardest(progress, removed))
        return keep_lowest(noise, self._mask_ratio)._replace(scores=scores)

    def loss(self, output: Output, mask: Mask) -> Tensor:
        return self._config.ranking_weight * _LOSSES[self._config.ranking](*self._compared(output, mask))

    def after_step(self, model: nn.Module, progress: Tensor, finite: Tensor) -> None:
        self.teacher.follow(((1 - self._momentum(progress)) * finite).float())

    @torch.no_grad()
    def figures(self, output: Output, mask: Mask, progress: Tensor) -> dict[str, Tensor]:
        removed = mask.mask.shape[1] - mask.ids_keep.shape[1]
        return {
            "hard_share": self._hardest(progress, removed) / removed,
            "ranking_accuracy": ranking_accuracy(*self._compared(output, mask)),
            "teacher_momentum": self._momentum(progress),
            "mask_agreement": agreement(mask),
        }

    def parameters_with_model(self) -> Iterable[tuple[str, nn.Parameter]]:
        return self.predictor.named_parameters(prefix="predictor")

    def _compared(self, output: Output, mask: Mask) -> tuple[Tensor, Tensor, Tensor]:
        """Return the predicted losses, the losses and the mask of the patches that have a loss, each (B, R)."""
        own_input = self.predictor.input
        tokens = own_input(output.latent, mask.ids_restore) if own_input else output.decoder_input
        losses, removed = (column.gather(1, output.predicted) for column in (output.per_patch_loss, mask.mask))
        return self.predictor(tokens, output.predicted), losses, removed

    def _hardest(self, progress: Tensor, removed: int) -> Tensor:
        """Return how many of an image's `removed` patches are the hardest, rounded down: int64, 0-d."""
        start, end = self._config.start_share, self._config.end_share
        share = start + (end - start) * self._schedule.clocked_progress(progress)
        return (removed * share + _ROUNDING).long()

    def _momentum(self, progress: Tensor) -> Tensor:
        start, end = self._config.start_momentum, self._config.end_momentum
        return start + (end - start) * (self._schedule.epoch(progress) / self._momentum_epochs).clamp(max=1)


def _pairs(
    copied: Autoencoder | nn.Module, original: Autoencoder | nn.Module
) -> Iterable[tuple[nn.Parameter, nn.Parameter]]:
    """Return the copy's parameters with those they were copied from, without those that never change."""
    originals = dict(original.named_parameters())
    pairs = ((parameter, originals[name]) for name, parameter in copied.named_parameters())
    return (pair for pair in pairs if pair[1].requires_grad)
