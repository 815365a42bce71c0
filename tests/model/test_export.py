"""Names, sizes and configurations for other libraries."""

import pytest
import timm
import torch
from transformers import ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from mimcl.model.config import SIZES, ModelConfig
from mimcl.model.export import preprocessor, timm_arguments, timm_folder, vit_folder, vit_mae_folder
from mimcl.model.mae import MaskedAutoencoderViT, build

SMALL = ModelConfig("vit_tiny", 8, decoder_width=32, decoder_depth=1, norm_pix_loss=False)


def shapes(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def on_meta(name, patch, image):
    """A model of any size, on the meta device."""
    width, depth, heads = SIZES[name]
    with torch.device("meta"):
        return MaskedAutoencoderViT(image, patch, width, depth, heads, 64, 1, 2, True)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(("patch", "image"), [(16, 224), (14, 224), (8, 64)])
def test_timm_creates_a_model_with_these_tensors(name, patch, image):
    config = ModelConfig(name, patch)
    tensors, described = timm_folder(config, image, on_meta(name, patch, image).state_dict(), 0.875)
    model, arguments = timm_arguments(config, image)
    with torch.device("meta"):
        made = timm.create_model(model, **arguments)
    assert shapes(made.state_dict()) == shapes(tensors)
    assert made.num_features == described["num_features"]
    assert (made.blocks[0].attn.num_heads, made.norm.eps) == (SIZES[name][2], 1e-6)
    assert arguments == {"num_classes": 0} | described["model_args"]


def test_arguments_that_follow_from_the_name_are_omitted():
    assert timm_arguments(ModelConfig(), 224) == ("vit_base_patch16_224", {"num_classes": 0})
    assert timm_arguments(ModelConfig("vit_huge", 14), 224) == ("vit_huge_patch14_224", {"num_classes": 0})
    assert timm_arguments(ModelConfig("vit_base", 14), 224)[1] == {"num_classes": 0, "patch_size": 14}
    assert timm_arguments(ModelConfig("vit_small", 16), 96)[1] == {"num_classes": 0, "img_size": 96}


@pytest.mark.parametrize("ratio", [0.75, 0.6])
def test_hugging_faces_models_have_these_tensors(ratio, tmp_path):
    weights = build(SMALL, 32, seed=0).state_dict()
    for kind, of, (tensors, described) in (
        (ViTModel, ViTConfig, vit_folder(SMALL, 32, weights)),
        (ViTMAEForPreTraining, ViTMAEConfig, vit_mae_folder(SMALL, 32, weights, ratio)),
    ):
        assert described["architectures"] == [kind.__name__]
        assert described["model_type"] == of.model_type
        config = of.from_dict(described)
        assert config.layer_norm_eps == 1e-6  # theirs is 1e-12
        model = kind(config, **({"add_pooling_layer": False} if kind is ViTModel else {}))
        assert sum(map(torch.numel, model.state_dict().values())) == sum(map(torch.numel, tensors.values()))
        if kind is ViTMAEForPreTraining:
            assert (config.mask_ratio, config.norm_pix_loss) == (ratio, False)
            blocks = [name for name in tensors if "decoder_layers.0." in name]  # not this version's decoder_encoder
            assert len(blocks) == 16


def test_the_evaluation_crop_of_224_pixels_is_cut_from_256():
    described = preprocessor(224, 0.875)
    assert described["size"] == {"shortest_edge": 256}
    assert described["crop_size"] == {"height": 224, "width": 224}
