"""MAE in: checkpoints of its own code, whose keys are worked by hand, and transformers' folders, become ViTModel."""

from pathlib import Path

import pytest
import torch
from conversion_folders import write_malicious
from moved_weights import moved
from torch.testing import assert_close
from transformers import AutoModel, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from ko_en_clip import KoEnClipConfig, KoEnClipModel
from ko_en_clip.conversion.mae import encoder_outputs, from_mae_checkpoint, from_mae_folder, mae_outputs, mae_parity
from ko_en_clip.conversion.reading import RefusedFileError

TOWER = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
PICTURES = {"image_size": 32, "patch_size": 8}


def shapes(decoder: bool, width: int = 24, inner: int = 48, layers: int = 2) -> dict[str, tuple[int, ...]]:
    """Keys of the released code's encoder, and of its decoder of width 16 and one block."""
    found: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 17, width),
        "patch_embed.proj.weight": (width, 3, 8, 8),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    blocks = [(f"blocks.{number}", width, inner) for number in range(layers)]
    if decoder:
        blocks.append(("decoder_blocks.0", 16, 64))
        found |= {"mask_token": (1, 1, 16), "decoder_pos_embed": (1, 17, 16)}
        found |= {"decoder_embed.weight": (16, width), "decoder_embed.bias": (16,)}
        found |= {"decoder_norm.weight": (16,), "decoder_norm.bias": (16,)}
        found |= {"decoder_pred.weight": (192, 16), "decoder_pred.bias": (192,)}
    for block, wide, inside in blocks:
        linear = {"attn.qkv": (3 * wide, wide), "attn.proj": (wide, wide)}
        linear |= {"mlp.fc1": (inside, wide), "mlp.fc2": (wide, inside)}
        for name, shape in linear.items():
            found |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            found |= {f"{block}.{name}.weight": (wide,), f"{block}.{name}.bias": (wide,)}
    return found


def state(decoder: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        values = torch.randn(shape, generator=generator)
        return (float("norm" in name and name.endswith("weight")) + 0.1 * values) if len(shape) == 1 else 0.3 * values

    return {name: drawn(name, shape) for name, shape in shapes(decoder).items()}


def write_checkpoint(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    torch.save({"model": tensors}, folder / "mae_pretrain_vit_test.pth")
    return folder / "mae_pretrain_vit_test.pth"


def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def by_transformers(tensors: dict[str, torch.Tensor]) -> ViTMAEForPreTraining:
    """Transformers' class as oracle, filled here by hand, under the names of its folders."""
    config = ViTMAEConfig(**TOWER, **PICTURES, layer_norm_eps=1e-6, mask_ratio=0.0)
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    filled = {f"vit.{name}": tensors[key] for key, name in names.items()}
    parts = {
        "attn.proj": "attention.output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    for number in range(2):
        layer = f"vit.encoder.layer.{number}"
        for end in ("weight", "bias"):
            stacked = tensors[f"blocks.{number}.attn.qkv.{end}"]
            for place, name in enumerate(("query", "key", "value")):
                filled[f"{layer}.attention.attention.{name}.{end}"] = stacked[24 * place : 24 * place + 24].clone()
            for key, name in parts.items():
                filled[f"{layer}.{name}.{end}"] = tensors[f"blocks.{number}.{key}.{end}"]
    model, info = ViTMAEForPreTraining.from_pretrained(
        None, config=config, state_dict=filled, output_loading_info=True
    )
    assert all(key.startswith("decoder") for key in info["missing_keys"]) and not info["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize("decoder", [False, True], ids=["encoder alone", "with its decoder"])
def test_a_checkpoint_encodes_as_transformers_does(decoder: bool, tmp_path: Path) -> None:
    tensors = state(decoder)
    made = from_mae_checkpoint(write_checkpoint(tmp_path, tensors), num_vision_heads=4)
    assert type(made.model) is ViTModel and made.model.pooler is None and made.processor is None
    noise = torch.arange(16).expand(2, -1)
    with torch.no_grad():
        expected = by_transformers(tensors).vit(pixels(), noise=noise, output_hidden_states=True)
    found = encoder_outputs(made.model, pixels())
    # 1e-5: the same float32 operations.
    for number, hidden in enumerate(expected.hidden_states):
        assert_close(found[f"vision.hidden_states.{number}"], hidden, rtol=1e-5, atol=1e-5)
    assert_close(found["vision.last_hidden_state"], expected.last_hidden_state, rtol=1e-5, atol=1e-5)
    assert (expected.last_hidden_state[0] - expected.last_hidden_state[1]).abs().max() > 1e-1
    # The twin: the small constant of the layer norms is MAE's, not that of transformers' ViT.
    assert made.model.config.layer_norm_eps == 1e-6


def test_parity_is_found_and_its_lack_too(tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path, state())
    made = from_mae_checkpoint(file, num_vision_heads=4)
    report = mae_parity(file, made)
    assert report.within, report.table()
    other = from_mae_checkpoint(file, num_vision_heads=2)
    # Heads are read from the converted model for the reference, so the source's own are given.
    source = mae_outputs(file, pixels(), 4)
    found = encoder_outputs(other.model, pixels())
    assert (found["vision.last_hidden_state"] - source["vision.last_hidden_state"]).abs().max() > 1e-2
    with torch.no_grad():
        made.model.embeddings.cls_token[0, 0, 0] += 0.1
    assert not mae_parity(file, made).within


def test_the_folder_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = {f"decoder_{name}": size for name, size in TOWER.items()}
    stock = moved(ViTMAEForPreTraining(ViTMAEConfig(**TOWER, **PICTURES, **decoder)))
    stock.save_pretrained(tmp_path)
    made = from_mae_folder(tmp_path)
    assert_close(dict(made.model.state_dict()), dict(stock.vit.state_dict()), rtol=0, atol=0)
    assert made.model.config.layer_norm_eps == stock.config.layer_norm_eps
    report = mae_parity(tmp_path, made)
    assert report.within and "ViTMAEForPreTraining" in report.reference
    with torch.no_grad():
        made.model.layernorm.bias[0] += 0.1
    report = mae_parity(tmp_path, made)
    assert [row.name for row in report.rows if not row.within] == ["vision.last_hidden_state"]


def test_the_encoder_is_a_tower_of_the_joint_model(tmp_path: Path) -> None:
    made = from_mae_checkpoint(write_checkpoint(tmp_path, state()), num_vision_heads=4)
    made.model.save_pretrained(tmp_path / "tower")
    again = AutoModel.from_pretrained(tmp_path / "tower", add_pooling_layer=False)
    assert_close(again.state_dict(), made.model.state_dict(), rtol=0, atol=0)
    text = {**TOWER, "vocab_size": 40, "pad_token_id": 37, "bos_token_id": 38, "eos_token_id": 39}
    config = KoEnClipConfig(
        text_config=text, vision_config=made.model.config.to_dict(), vision_pooling="mean", projection_dim=8
    )
    joint = KoEnClipModel(config).eval()
    joint.vision_model.load_state_dict(made.model.state_dict())
    with torch.no_grad():
        found = joint.get_image_features(pixels()).pooler_output
        expected = joint.visual_projection(made.model(pixels()).last_hidden_state.mean(dim=1))
    # 1e-6: the same operations on the same numbers.
    assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_stops_it(tmp_path: Path) -> None:
    tensors = state()
    with pytest.raises(ValueError, match="24 wide.*Set num_vision_heads"):
        from_mae_checkpoint(write_checkpoint(tmp_path, tensors))
    for change, message in (
        ({"blocks.1.norm2.bias": None}, r"keys without weights: encoder\.layer\.1\.layernorm_after\.bias"),
        ({"blocks.1.gamma": torch.ones(24)}, r"unknown keys: blocks\.1\.gamma"),
        ({"norm.bias": torch.ones(23)}, r"layernorm\.bias is \(23,\) and must be \(24,\)"),
        ({"pos_embed": None}, "has no pos_embed"),
    ):
        changed = {key: tensor for key, tensor in (tensors | change).items() if tensor is not None}
        with pytest.raises(ValueError, match=message):
            from_mae_checkpoint(write_checkpoint(tmp_path, changed), num_vision_heads=4)


def test_a_malicious_file_is_refused_without_running(tmp_path: Path) -> None:
    write_malicious(tmp_path / "mae.pth", tmp_path / "trace")
    with pytest.raises(RefusedFileError, match="would run code"):
        from_mae_checkpoint(tmp_path / "mae.pth")
    assert not (tmp_path / "trace").exists()
