"""Classification by nearest neighbours: how well distances between frozen features tell the classes apart.

Similarity is the cosine. nn is the class of the most similar sample; knn is DINO's weighted vote (Caron et al. 2021,
arXiv 2104.14294), in which the k most similar samples vote for their classes with weight exp(similarity / temperature).
The search is exact: blocks of similarities by matrix product, the best k of each block kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import normalize

from mimcl.model.evaluate.samples import labelled

_QUERIES, _BANK = 512, 16_384  # a block of similarities: 32 MB


def knn(
    bank: ArrayLike,
    bank_labels: ArrayLike,
    queries: ArrayLike,
    query_labels: ArrayLike,
    k: int = 20,
    temperature: float = 0.07,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[str, float]]:
    """Yields ("nn", accuracy), then ("knn", accuracy): the share, 0 to 1, of queries that get their own class.

    `bank` (N, D) and `queries` (M, D) are features of any length, computed on in float32; labels (N,) and (M,) are
    whole numbers, and samples with a negative one are left out. A bank of fewer than `k` samples votes as a whole. Of
    equal similarities the lower row of the bank comes first, of equal votes the class of the nearer sample.
    ValueError where nothing is left, or for features that are not finite.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"k is {k} and the temperature {temperature}; k must be at least 1, the temperature above 0")
    bank, bank_labels = labelled("bank", bank, bank_labels, device)
    queries, query_labels = labelled("queries", queries, query_labels, device)
    bank, queries = normalize(bank), normalize(queries)
    nearest_right, vote_right = 0, 0
    for features, truth in zip(queries.split(_QUERIES), query_labels.split(_QUERIES), strict=True):
        similarities, rows = nearest(bank, features, k)
        labels = bank_labels[rows]
        nearest_right += (labels[:, 0] == truth).sum()
        vote_right += (vote(similarities, labels, temperature) == truth).sum()
    yield "nn", int(nearest_right) / len(queries)
    yield "knn", int(vote_right) / len(queries)


def nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Inner products with the min(k, N) best rows of `bank` (N, D) for each query (M, D), descending; and those rows.

    Both (M, min(k, N)); of equal products the lower row comes first.
    """
    values = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(bank), _BANK):
        found, columns = _largest(queries @ bank[start : start + _BANK].T, k)
        # A stable sort keeps what was found before, which are lower rows, ahead of its equals.
        values, order = torch.cat([values, found], dim=1).sort(dim=1, descending=True, stable=True)
        rows = torch.cat([rows, columns + start], dim=1).gather(1, order)
        values, rows = values[:, :k], rows[:, :k]
    return values, rows


def vote(similarities: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The class (M,) with the largest sum of exp(similarity / temperature) among neighbours (M, k), nearest first."""
    # Relative to the nearest neighbour: the same winner, and no temperature overflows.
    weights = ((similarities.double() - similarities[:, :1].double()) / temperature).exp()
    votes = ((labels.unsqueeze(2) == labels.unsqueeze(1)) * weights.unsqueeze(1)).sum(dim=2)  # for each one's class
    return labels.gather(1, votes.argmax(dim=1, keepdim=True)).squeeze(1)


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row (M, C) and their columns, descending, of equal ones the leftmost first."""
    found, columns = values.topk(min(k + 1, values.shape[1]))
    # topk leaves open which of equal values it takes and how it orders them; the one beyond k shows a tie at the end.
    tied = (found[:, 1:] == found[:, :-1]).any(dim=1).nonzero().squeeze(1)
    if len(tied):
        ordered, order = values[tied].sort(dim=1, descending=True, stable=True)
        found[tied], columns[tied] = ordered[:, : found.shape[1]], order[:, : found.shape[1]]
    return found[:, :k], columns[:, :k]
