"""Floating-point operations of the autoencoder, by its sizes; imports no torch."""

from __future__ import annotations

from mimcl.model.config import SIZES, ModelConfig


def gflop_per_draw(config: ModelConfig, patches: int, mask_ratio: float) -> float:
    """Return the 10^9 operations of a draw's forward and backward pass over images of so many patches.

    A multiplication and an addition are two operations. Matrix products are counted, as by torch's counter, of a step
    that computes needed tokens only; a masker that learns adds its own.
    """
    width, depth, _ = SIZES[config.name]
    inner, pixels = config.decoder_width, 3 * config.patch_size**2
    kept = int(patches * (1 - mask_ratio))
    removed, tokens = patches - kept, 1 + kept
    predicted = max(1, round(config.predict_share * removed))
    decoder = _cross_decoder if config.decoder == "cross" else _self_decoder
    forward = depth * _block(width, tokens, tokens) + predicted * inner * pixels
    forward += decoder(config, tokens, 1 + patches, predicted)
    # Backward, each product is computed twice: for its input and for its weights. Pixels need no gradient.
    return 2e-9 * (3 * forward + 2 * kept * width * pixels)


def _self_decoder(config: ModelConfig, visible: int, tokens: int, predicted: int) -> int:
    """Return the multiplications of the embedding and of all blocks; the last computes predicted patches only."""
    width, inner = SIZES[config.name][0], config.decoder_width
    blocks = (config.decoder_depth - 1) * _block(inner, tokens, tokens) + _block(inner, tokens, predicted)
    return visible * width * inner + blocks


def _cross_decoder(config: ModelConfig, visible: int, tokens: int, predicted: int) -> int:
    """Return the multiplications of all mixtures of the encoder's layers, and of the blocks that attend to them."""
    width, encoder_depth, _ = SIZES[config.name]
    inner, depth = config.decoder_width, config.decoder_depth
    mixtures = depth * (1 + encoder_depth) * visible * width
    queries = 10 * predicted * inner**2 + 2 * predicted * visible * inner
    return mixtures + depth * (2 * visible * width * inner + queries)


def _block(width: int, tokens: int, computed: int) -> int:
    """Return the multiplications of a transformer block of which only so many tokens are computed."""
    return 2 * tokens * width**2 + 10 * computed * width**2 + 2 * computed * tokens * width
