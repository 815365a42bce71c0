"""Recipes: functions that return a complete configuration. Their docstrings say what they reproduce, at what cost."""

from __future__ import annotations

from collections.abc import Callable

from mimcl.cli.config import Config
from mimcl.cli.errors import ConfigError
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.resolution import EFFICIENT
from mimcl.model.config import ModelConfig, OptimConfig, TrainerConfig
from mimcl.pipeline.data_config import DataConfig


def mae_b16() -> Config:
    """MAE ViT-B/16 on ImageNet-1K, 800 epochs: the baseline of He et al. (CVPR 2022) and of the curriculum papers.

    Batch 4096, base_lr 1.5e-4, 40 epochs of warm-up, normalised pixels. Published for 800 epochs by others: linear
    probe 64 to 65, fine-tuning 83.1 to 83.3; not yet reproduced with this program. Cost: 1.02e9 draws of 57.1 GFLOP
    (forward and backward, see model/cost.py), 5.9e19 FLOP.

        mimcl train --recipe mae_b16
    """
    return Config(recipe="mae_b16")


def mae_l16() -> Config:
    """MAE ViT-L/16 on ImageNet-1K, 800 epochs (He et al., table 1d: fine-tuning 85.4 with normalised pixels).

    As mae_b16 with the larger encoder. Not yet reproduced with this program. Cost: 122.8 GFLOP a draw, 1.3e20 FLOP; the
    paper's authors give 42 hours on 64 V100.

        mimcl train --recipe mae_l16
    """
    return Config(recipe="mae_l16", model=ModelConfig(name="vit_large"), data=DataConfig(micro_batch_size=128))


def mae_h14() -> Config:
    """MAE ViT-H/14 on ImageNet-1K, 800 epochs: He et al.'s largest model at 224 pixels (1600 epochs: 86.9).

    As mae_b16 with the larger encoder and patches of 14 pixels. Not yet reproduced with this program. Cost: 289.2 GFLOP
    a draw, 3.0e20 FLOP.

        mimcl train --recipe mae_h14
    """
    model = ModelConfig(name="vit_huge", patch_size=14)
    return Config(recipe="mae_h14", model=model, data=DataConfig(micro_batch_size=64))


def mae_b16_fast() -> Config:
    """mae_b16 with the decoder of CrossMAE (Fu et al., 2024) and crops that grow (EfficientTrain++, Wang et al., 2024).

    The decoder has cross-attention and 12 blocks, and predicts a quarter of the removed patches. CrossMAE's authors
    report fine-tuning 83.7 for ViT-B, with all removed patches predicted, at full size; in their paper a prediction
    ratio of 0.25 is a third of the removed patches. Not yet reproduced with this program. Cost: 15.6 GFLOP a draw on
    average, 35.9 at 224 px where mae_b16 has 57.1, counted alike: 1.6e19 FLOP, 0.27 times. Measured time of a step /
    mae_b16's on a CPU: 0.59 at 224 px, 0.29 on average (tools/bench/decoder.txt).

        mimcl train --recipe mae_b16_fast
    """
    model = ModelConfig(decoder="cross", decoder_depth=12, predict_share=0.25)
    return Config(recipe="mae_b16_fast", model=model, curriculum=CurriculumConfig(resolution=EFFICIENT))


def cifar_tiny() -> Config:
    """ViT-Ti/4 on 32-pixel images such as CIFAR-10: for experiments about curricula that end within hours.

    Reproduces no paper. Cost: 0.64 GFLOP a draw; an epoch of CIFAR-10 took 2.5 minutes on 2 cores.

        mimcl train --recipe cifar_tiny
    """
    return Config(
        recipe="cifar_tiny",
        data=DataConfig(image_size=32, batch_size=256, micro_batch_size=256),
        model=ModelConfig(name="vit_tiny", patch_size=4, decoder_width=96, decoder_depth=2),
        optim=OptimConfig(base_lr=1e-3, warmup_epochs=10),
        trainer=TrainerConfig(epochs=200, checkpoint_every_steps=500),
    )


def cpu_small() -> Config:
    """ViT-Ti/8 on 64-pixel crops: shows the whole program at work on a machine without a GPU.

    Reproduces no paper. Cost: 0.64 GFLOP a draw; 50 epochs of 500 ImageNet images took 2.2 minutes on 2 cores.

        mimcl train --recipe cpu_small
    """
    return Config(
        recipe="cpu_small",
        data=DataConfig(image_size=64, batch_size=64, micro_batch_size=64),
        model=ModelConfig(name="vit_tiny", patch_size=8, decoder_width=96, decoder_depth=2),
        optim=OptimConfig(base_lr=1.5e-3, warmup_epochs=5),
        trainer=TrainerConfig(epochs=50, log_every_steps=10, checkpoint_every_steps=200),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    f.__name__: f for f in (mae_b16, mae_b16_fast, mae_l16, mae_h14, cifar_tiny, cpu_small)
}


def recipe(name: str) -> Config:
    """Return the recipe of that name; `auto_recipe` chooses one. Raises ConfigError."""
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}; choose auto or one of {', '.join(RECIPES)}")
    return RECIPES[name]()
