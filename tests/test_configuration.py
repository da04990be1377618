"""Configurations: what is refused and why, and that they survive saving."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from ko_en_clip import KoEnClipConfig, KoEnClipTextConfig, KoEnClipVisionConfig

TEXT = {"vocab_size": 100, "pad_token_id": 97, "bos_token_id": 98, "eos_token_id": 99}


@contextmanager
def transformers_log_reaches(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """transformers keeps its log from the root logger, where pytest listens."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    yield
    logger.removeHandler(caplog.handler)


def message(error: pytest.ExceptionInfo[BaseException]) -> str:
    """The whole message, that of the cause included."""
    return f"{error.value} {error.value.__cause__ or ''}"


@pytest.mark.parametrize(
    ("config_class", "good", "bad", "named"),
    [
        # Wrong types.
        (KoEnClipTextConfig, {"hidden_size": 64}, {"hidden_size": "64"}, ("hidden_size", "str", "'64'")),
        (KoEnClipVisionConfig, {"num_hidden_layers": 3}, {"num_hidden_layers": 2.5}, ("num_hidden_layers", "2.5")),
        (KoEnClipConfig, {"projection_dim": 64}, {"projection_dim": "64"}, ("projection_dim", "str", "'64'")),
        (KoEnClipConfig, {"norm_pix_loss": False}, {"norm_pix_loss": "no"}, ("norm_pix_loss", "bool", "'no'")),
        # Heads that do not divide the width.
        (
            KoEnClipTextConfig,
            {"hidden_size": 30, "num_attention_heads": 5},
            {"hidden_size": 30, "num_attention_heads": 4},
            ("text_config", "hidden_size (30)", "multiple of num_attention_heads (4)"),
        ),
        (
            KoEnClipVisionConfig,
            {"hidden_size": 48, "num_attention_heads": 12},
            {"hidden_size": 50, "num_attention_heads": 12},
            ("vision_config", "hidden_size (50)", "multiple of num_attention_heads (12)"),
        ),
        (
            KoEnClipConfig,
            {"decoder_hidden_size": 24, "decoder_num_attention_heads": 4},
            {"decoder_hidden_size": 20, "decoder_num_attention_heads": 8},
            ("decoder", "hidden_size (20)", "multiple of num_attention_heads (8)"),
        ),
        # The decoder's positions need four parts.
        (
            KoEnClipConfig,
            {"decoder_hidden_size": 12, "decoder_num_attention_heads": 2},
            {"decoder_hidden_size": 10, "decoder_num_attention_heads": 2},
            ("decoder_hidden_size (10)", "multiple of 4"),
        ),
        # Patches that do not tile the picture.
        (
            KoEnClipVisionConfig,
            {"image_size": 60, "patch_size": 12},
            {"image_size": 60, "patch_size": 16},
            ("vision_config.image_size (60)", "multiple of", "patch_size (16)"),
        ),
        # Special ids.
        (
            KoEnClipTextConfig,
            TEXT | {"eos_token_id": 3},
            TEXT | {"eos_token_id": 2},
            ("eos_token_id is 2", "largest id"),
        ),
        (KoEnClipTextConfig, TEXT, TEXT | {"eos_token_id": [98, 99]}, ("eos_token_id is [98, 99]", "one EOS id")),
        (KoEnClipTextConfig, TEXT, TEXT | {"eos_token_id": None}, ("eos_token_id is None", "one EOS id")),
        (
            KoEnClipTextConfig,
            TEXT | {"pad_token_id": 98},
            TEXT | {"pad_token_id": 99},
            ("pad_token_id", "eos_token_id", "both 99"),
        ),
        *(
            (KoEnClipTextConfig, TEXT | {name: 96}, TEXT | {name: 100}, (f"{name} is 100", "vocab_size=100"))
            for name in ("pad_token_id", "bos_token_id", "eos_token_id")
        ),
        (KoEnClipTextConfig, TEXT | {"pad_token_id": 0}, TEXT | {"pad_token_id": -1}, ("pad_token_id is -1",)),
        # Ends of the mask ratio.
        (KoEnClipConfig, {"mask_ratio": 0.01}, {"mask_ratio": 0.0}, ("mask_ratio is 0.0", "between 0 and 1")),
        (KoEnClipConfig, {"mask_ratio": 0.99}, {"mask_ratio": 1.0}, ("mask_ratio is 1.0", "between 0 and 1")),
    ],
)
def test_bad_field_is_refused_by_name_value_and_rule(
    config_class: Any, good: dict[str, Any], bad: dict[str, Any], named: tuple[str, ...]
) -> None:
    config = config_class(**good)
    assert {name: getattr(config, name) for name in good} == good
    with pytest.raises(StrictDataclassError) as error:
        config_class(**bad)
    for words in named:
        assert words in message(error)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"text_config": {"hidden_size": 30, "num_attention_heads": 4}}, "hidden_size (30)"),
        ({"vision_config": {"image_size": 60, "patch_size": 16}}, "image_size (60)"),
    ],
)
def test_bad_tower_is_refused_through_the_joint_configuration(bad: dict[str, Any], words: str) -> None:
    with pytest.raises(StrictDataclassError, match=re.escape(words)):
        KoEnClipConfig(**bad)


def test_round_trip_keeps_every_field(tiny_config: KoEnClipConfig, tmp_path: Path) -> None:
    tiny_config.mask_ratio = 0.6
    tiny_config.norm_pix_loss = False
    tiny_config.save_pretrained(tmp_path)
    for loaded in (KoEnClipConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is KoEnClipConfig
        assert type(loaded.text_config) is KoEnClipTextConfig
        assert type(loaded.vision_config) is KoEnClipVisionConfig
        written, read = tiny_config.to_dict(), loaded.to_dict()
        for fields in (written, read):
            fields.pop("_name_or_path", None)
        assert read == written
        assert loaded.text_config.eos_token_id == tiny_config.text_config.eos_token_id
        assert (loaded.mask_ratio, loaded.norm_pix_loss) == (0.6, False)

    # The twin: one field changed in the file is one field changed in what is loaded.
    fields = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    fields["vision_config"]["num_hidden_layers"] = 1
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    assert KoEnClipConfig.from_pretrained(tmp_path).vision_config.num_hidden_layers == 1


def test_bad_field_is_refused_on_loading(tiny_config: KoEnClipConfig, tmp_path: Path) -> None:
    tiny_config.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    fields["text_config"]["eos_token_id"] = 2
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(StrictDataclassError, match="eos_token_id is 2"):
        KoEnClipConfig.from_pretrained(tmp_path)


def test_towers_are_read_from_the_joint_folder(tiny_config: KoEnClipConfig, tmp_path: Path) -> None:
    tiny_config.save_pretrained(tmp_path)
    text = KoEnClipTextConfig.from_pretrained(tmp_path)
    vision = KoEnClipVisionConfig.from_pretrained(tmp_path)
    assert (text.vocab_size, text.hidden_size) == (tiny_config.text_config.vocab_size, 32)
    assert (vision.image_size, vision.patch_size) == (32, 8)
    # The twin: none of these is the default that a folder not understood would give.
    assert text.vocab_size != KoEnClipTextConfig().vocab_size
    assert vision.image_size != KoEnClipVisionConfig().image_size


@pytest.mark.parametrize("config_class", [KoEnClipTextConfig, KoEnClipVisionConfig])
def test_tower_alone_round_trips(config_class: Any, tmp_path: Path) -> None:
    config_class(hidden_size=24, num_attention_heads=3).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is config_class
    assert (loaded.hidden_size, loaded.num_attention_heads) == (24, 3)


def test_projection_dim_reaches_both_towers() -> None:
    config = KoEnClipConfig(projection_dim=24, text_config={"projection_dim": 7})
    assert config.text_config.projection_dim == config.vision_config.projection_dim == 24


def test_towers_may_be_given_as_objects() -> None:
    config = KoEnClipConfig(text_config=KoEnClipTextConfig(**TEXT), vision_config=KoEnClipVisionConfig(image_size=64))
    assert (config.text_config.vocab_size, config.vision_config.image_size) == (100, 64)


def test_documented_defaults() -> None:
    """ViT-B/32 of KELIP: its text tower, CLIP's vision tower, He et al.'s decoder."""
    config = KoEnClipConfig()
    text, vision = config.text_config, config.vision_config
    assert (text.vocab_size, text.hidden_size, text.intermediate_size) == (98304, 512, 2048)
    assert (text.num_hidden_layers, text.num_attention_heads, text.max_position_embeddings) == (12, 8, 77)
    assert (text.pad_token_id, text.bos_token_id, text.eos_token_id) == (98301, 98302, 98303)
    assert (vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers) == (768, 3072, 12)
    assert (vision.num_attention_heads, vision.image_size, vision.patch_size) == (12, 224, 32)
    assert (config.projection_dim, config.logit_scale_init_value, config.mask_ratio) == (512, 2.6592, 0.75)
    assert (config.decoder_hidden_size, config.decoder_num_hidden_layers, config.decoder_num_attention_heads) == (
        512,
        8,
        16,
    )


def test_defaults_are_made_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    """No Python warning (they are errors here) and no line of the libraries' own logs."""
    with caplog.at_level("INFO"), transformers_log_reaches(caplog):
        KoEnClipConfig(**KoEnClipConfig().to_dict())
        KoEnClipTextConfig()
        KoEnClipVisionConfig()
        assert caplog.messages == []
        # The twin: what transformers logs is seen here.
        logging.getLogger("transformers.configuration_utils").warning("seen")
        # Once or twice: another test may have told transformers to pass its log on.
        assert set(caplog.messages) == {"seen"}
