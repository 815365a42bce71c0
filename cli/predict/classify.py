"""Classify all images of an index by a fine-tuned classifier, in batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from mimcl.cli.encoders.feature_store import BATCH
from mimcl.cli.encoders.split_features import central_crop_stream
from mimcl.cli.predict.prediction import Prediction
from mimcl.model.classifier_weights import ClassifierWeights
from mimcl.model.evaluate.finetune import normalise
from mimcl.model.world import World
from mimcl.pipeline.cores import decode_threads
from mimcl.pipeline.decoder_choice import make_decoder
from mimcl.pipeline.index import ShardIndex


def classify(
    weights: ClassifierWeights, index: ShardIndex, precision: str, decoder_name: str, top: int
) -> Iterator[Prediction]:
    """Yield the classes of the central crop of each image, in order. Raises DataError for an unusable decoder."""
    device = World().inference_device()
    model = weights.model().to(device)
    decoder, _ = make_decoder(decoder_name, weights.image_size, BATCH, decode_threads(1), index.largest)
    known = set(weights.classes)
    for batch in central_crop_stream(index, decoder, np.arange(index.samples)):
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(normalise(batch.images.to(device))).float()
        best = logits.topk(min(top, len(weights.classes)))
        shares = (best.values - logits.logsumexp(dim=1, keepdim=True)).exp().tolist()
        errors = {bad.sample_id: bad.reason for bad in batch.bad}
        rows = zip(batch.sample_ids.tolist(), batch.labels.tolist(), best.indices.tolist(), shares, strict=True)
        for sample_id, label, numbers, probabilities in rows:
            if error := errors.get(sample_id):
                yield Prediction(index.path(sample_id), error=error)
                continue
            classes = tuple(zip((weights.classes[number] for number in numbers), probabilities, strict=True))
            name = None if label < 0 else index.classes[label] if index.classes else str(label)
            yield Prediction(index.path(sample_id), classes, name if name in known else None)
