"""Make a prototype set of losses: one cluster, with the scaled loss in the place of the distance."""

from __future__ import annotations

import numpy as np

from mimcl.cli.encoders.bad_images import describe_bad
from mimcl.cli.prototypes.measures import Measure
from mimcl.cli.prototypes.workspace import BuildFolder
from mimcl.curriculum.prototypes import PrototypeSet
from mimcl.curriculum.score_set import make_score_set
from mimcl.pipeline.index import ShardIndex


def set_of_losses(index: ShardIndex, building: BuildFolder, losses: Measure) -> PrototypeSet:
    """Make the set of the losses in `building`. Raises ValueError if some are not finite, or all are equal."""
    bad = building.bad_images()
    cluster = np.where(bad, -1, 0).astype(np.int32)
    scores = np.full(index.samples, np.nan, np.float32)
    scores[~bad] = np.concatenate([part[:, 0] for part in building.all_features()])
    if lost := np.count_nonzero(~np.isfinite(scores[~bad])):
        raise ValueError(
            f"{losses.about['name']}: the loss of {lost:,} of {len(scores):,} images is not finite; give a checkpoint "
            "from before the run diverged"
        )
    info = {"index_fingerprint": index.fingerprint, **describe_bad(index, np.flatnonzero(bad))}
    return make_score_set(scores, cluster, losses.about, info)
