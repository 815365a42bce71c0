"""Nearest-neighbour classification of frozen features.

Similarity is the cosine. nn predicts the class of the most similar sample; knn is DINO's weighted vote (Caron et al.
2021, arXiv 2104.14294), in which the k most similar samples vote for their class with weight
exp(similarity / temperature). The search is exact: similarities are computed in blocks by matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import normalize

from mimcl.model.evaluate.samples import labelled

_QUERIES, _BANK = 512, 16_384  # size of a block of similarities: 32 MB


def knn(
    bank: ArrayLike,
    bank_labels: ArrayLike,
    queries: ArrayLike,
    query_labels: ArrayLike,
    k: int = 20,
    temperature: float = 0.07,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[str, float]]:
    """Yield ("nn", accuracy), then ("knn", accuracy) on the queries, in [0, 1]; `correct` describes the arguments."""
    for name, found in correct(bank, bank_labels, queries, query_labels, k, temperature, device).items():
        yield name, int(found.sum()) / len(found)


def correct(
    bank: ArrayLike,
    bank_labels: ArrayLike,
    queries: ArrayLike,
    query_labels: ArrayLike,
    k: int = 20,
    temperature: float = 0.07,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Return which queries are classified correctly, by "nn" and by "knn": bool (M,).

    `bank` (N, D) and `queries` (M, D) are features, not necessarily of unit length, computed on in float32; labels (N,)
    and (M,) are integers, and samples with a negative label are ignored. A bank of fewer than `k` samples votes as a
    whole. Equal similarities are ordered by row of the bank; of equal votes the class of the nearer sample wins.
    Raises ValueError if no sample has a label or a feature is not finite.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"k is {k} and the temperature {temperature}; k must be at least 1, the temperature above 0")
    bank_x, bank_y = labelled("bank", bank, bank_labels, device)
    x, y = labelled("queries", queries, query_labels, device)
    bank_x, x = normalize(bank_x), normalize(x)
    by_nn, by_knn = [], []
    for features, truth in zip(x.split(_QUERIES), y.split(_QUERIES), strict=True):
        similarities, rows = nearest(bank_x, features, k)
        labels = bank_y[rows]
        by_nn.append(labels[:, 0] == truth)
        by_knn.append(vote(similarities, labels, temperature) == truth)
    return {"nn": torch.cat(by_nn), "knn": torch.cat(by_knn)}


def nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest inner products of each query (M, D) with rows of `bank` (N, D), descending, and those rows.

    Both are (M, min(k, N)); equal products are ordered by row.
    """
    values = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(bank), _BANK):
        products, columns = _largest(queries @ bank[start : start + _BANK].T, k)
        # The sort is stable: lower rows, found in earlier blocks, stay ahead of equal ones.
        values, order = torch.cat([values, products], dim=1).sort(dim=1, descending=True, stable=True)
        rows = torch.cat([rows, columns + start], dim=1).gather(1, order)
        values, rows = values[:, :k], rows[:, :k]
    return values, rows


def vote(similarities: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The class (M,) with the largest sum of exp(similarity / temperature) over neighbours (M, k), nearest first."""
    # Relative to the nearest neighbour: the winner is the same, and low temperatures do not overflow.
    weights = ((similarities.double() - similarities[:, :1].double()) / temperature).exp()
    same_class = labels.unsqueeze(2) == labels.unsqueeze(1)
    votes = (same_class * weights.unsqueeze(1)).sum(dim=2)  # for the class of each neighbour
    return labels.gather(1, votes.argmax(dim=1, keepdim=True)).squeeze(1)


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row (M, C) and their columns, descending; equal values are ordered by column."""
    found, columns = values.topk(min(k + 1, values.shape[1]))
    # Which of equal values topk takes, and in which order, is undefined; value k + 1 shows a tie at the end.
    tied = (found[:, 1:] == found[:, :-1]).any(dim=1).nonzero().squeeze(1)
    if len(tied):
        ordered, order = values[tied].sort(dim=1, descending=True, stable=True)
        found[tied], columns[tied] = ordered[:, : found.shape[1]], order[:, : found.shape[1]]
    return found[:, :k], columns[:, :k]
