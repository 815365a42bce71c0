"""A program that uses mimcl.api, for the type checker alone: results have their types, and wrong calls are errors."""

from pathlib import Path
from typing import Any, assert_type

import torch

from mimcl.api import (
    ConfigError,
    Curriculum,
    DataError,
    Loader,
    LoaderBatch,
    build_prototypes,
    compare,
    evaluate,
    export,
    import_scores,
    plan,
    report,
    shard,
    train,
)
from mimcl.curriculum.config import CurriculumConfig

packed = shard("imagenet", holdout=0.2, short_side=256)
assert_type(packed, dict[str, Any])
folder, prototypes = build_prototypes("shards", features="sift", k=4)
assert_type(folder, Path)
assert_type(prototypes.info, dict[str, Any])
assert_type(import_scores("losses.npy", Path("shards"), name="losses")[0], Path)
planned = plan("cpu_small", curriculum="proto", temp_schedule="linear", settings={"data.batch_size": 8})
assert_type(planned.forecasts[0].effective_fraction, float)
run = train("cpu_small", data=Path("shards"), curriculum="proto", epochs=5, out="run")
assert_type(run.folder, Path)
assert_type(run.finished, bool)
assert_type(evaluate(run.folder).trained, dict[str, float])
assert_type(evaluate(run.folder, "linear", recipe="mae", base_lr=0.1).val, int)
assert_type(evaluate(run.folder, "few-shot", shots=[1, 5], pool="cls").trained, dict[str, float])
assert_type(evaluate(run.folder, "attentive", epochs=5, queries=16).trained, dict[str, float])
assert_type(evaluate(run.folder, "rank", split="val", images=500, views=10).untrained, dict[str, float])
assert_type(evaluate(run.folder, "finetune", settings={"mixup": 0}).classes, int)
assert_type(compare("cpu_small", ["epochs", "proto"], seeds=5).rows[0].arm, str)
assert_type(report([run.folder, "other"], label=["a", "b"]), Path)
assert_type(export(run.folder, "out", target="hf").difference, float)
assert_type(export(run.folder, push="user/name", private=True).url, str | None)
loader = Loader("shards", batch_size=8, views=2, curriculum=Curriculum("proto"))
assert_type(next(iter(loader)), LoaderBatch)
for batch in loader:
    assert_type(batch.images, torch.Tensor)
try:
    train()
except (ConfigError, DataError) as error:
    assert_type(error, ConfigError | DataError)

curriculum: CurriculumConfig = Curriculum("anti")
shard("imagenet", hold_out=0.2)  # type: ignore[call-arg]
build_prototypes("shards", singletons="middle")  # type: ignore[arg-type]
train("cpu_big")  # type: ignore[arg-type]
train("cpu_small", epoch=5)  # type: ignore[call-arg]
train("cpu_small", curriculum="hard")  # type: ignore[arg-type]
plan("cpu_small", temp_schedule="sine")  # type: ignore[arg-type]
evaluate(run)  # type: ignore[call-overload]
evaluate("run", "linear", k=3)  # type: ignore[call-overload]
evaluate("run", "svm")  # type: ignore[call-overload]
compare("cpu_small", "epochs", budget="money")  # type: ignore[arg-type]
export("run", "out", target="onnx")  # type: ignore[arg-type]
