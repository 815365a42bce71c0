"""The block has timm's results for all tokens and for any of them, and attention is as precise as its arithmetic."""

import copy
from functools import partial

import pytest
import torch
from timm.models import vision_transformer
from torch import nn
from torch.nn import functional

from mimcl.model.block import Block, attend, take


def blocks(width=24, heads=3):
    """Our block and timm's with the same weights, float64."""
    norm = partial(nn.LayerNorm, eps=1e-6)
    theirs = vision_transformer.Block(width, heads, qkv_bias=True, norm_layer=norm).double()
    ours = Block(width, heads).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def outcome(block, x, function, ids=None):
    """Return the output (only of tokens at `ids`), and the gradients in x and in all parameters."""
    x = x.clone().requires_grad_()
    out = function(block, x)
    out = out if ids is None else take(out, ids)
    return [out, *torch.autograd.grad(out.square().sum(), [x, *block.parameters()])]


@pytest.mark.parametrize(("width", "heads", "tokens"), [(24, 3, 7), (32, 1, 50), (64, 4, 197)])
def test_outputs_and_gradients_are_those_of_timm(width, heads, tokens):
    ours, theirs = blocks(width, heads)
    x = torch.randn(3, tokens, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        pair = [outcome(b.to(dtype), x.to(dtype), lambda block, x: block(x)) for b in (ours, theirs)]
        for found, expected in zip(*pair, strict=True):
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("ids", [[[0]] * 3, [[6, 2, 0], [0, 1, 2], [5, 4, 3]], [[*range(7)]] * 3])
def test_some_tokens_are_those_of_the_whole_block(ids):
    ours, theirs = blocks()
    x, ids = torch.randn(3, 7, 24, dtype=torch.float64), torch.tensor(ids)
    some = outcome(ours, x, lambda block, x: block(x, ids))
    for found, expected in zip(some, outcome(theirs, x, lambda block, x: block(x), ids), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("tokens", "width"), [(50, 64), (197, 32), (197, 64)])
def test_attention_has_the_precision_of_its_arithmetic(tokens, width):
    generator = torch.Generator().manual_seed(0)
    *parts, gradient = (torch.randn(8, 3, tokens, width, generator=generator).bfloat16() for _ in range(4))

    def results(attention, dtype):
        inputs = [part.to(dtype).requires_grad_() for part in parts]
        out = attention(*inputs)
        return [out, *torch.autograd.grad(out, inputs, gradient.to(dtype))]

    exact = results(functional.scaled_dot_product_attention, torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2**-7)):
        for found, right in zip(results(attend, dtype), exact, strict=True):
            assert (found - right).norm() < tolerance * right.norm()


@pytest.mark.parametrize(
    ("dtype", "trains", "unfused"),
    [
        (torch.bfloat16, True, True),
        (torch.bfloat16, False, False),
        (torch.float32, True, False),
        (torch.float32, False, False),
    ],
)
def test_attention_is_unfused_only_where_that_is_faster(dtype, trains, unfused):
    parts = [torch.randn(2, 3, 7, 16, dtype=dtype, requires_grad=trains) for _ in range(3)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        attend(*parts)
    names = {event.name for event in profile.events()}
    assert ("aten::softmax" in names) == unfused
    assert ("aten::scaled_dot_product_attention" in names) != unfused
    assert "aten::_safe_softmax" not in names


def test_a_block_is_copied_and_saved_like_that_of_timm():
    ours, theirs = blocks()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert isinstance(copy.deepcopy(ours), Block)
