"""Folders and files of other systems with random weights, in the formats that they have, for tests of conversion."""

import pickle
from pathlib import Path
from typing import Any

import torch
from moved_weights import moved
from transformers import (
    AlignConfig,
    AlignModel,
    BertTokenizer,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPVisionConfig,
    RobertaConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil

LETTERS = "abcdefghijklmnopqrstuvwxyz가나다라0124,"
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "photo", "##graph", "猫", "的", *LETTERS)
VOCABULARY = (*WORDS, *(f"##{letter}" for letter in LETTERS))
BERT = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 60,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
VIT = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
# `hidden_dim` is the side of the window that the pooler averages over; it must cover the feature map.
EFFICIENTNET = {"width_coefficient": 0.25, "depth_coefficient": 0.25, "image_size": 64, "hidden_dim": 80}
# As in the released folder: -1 to 1, no mean and deviation.
ALIGN_PICTURES = {
    "size": {"height": 70, "width": 70},
    "crop_size": {"height": 64, "width": 64},
    "do_center_crop": True,
    "resample": 2,
    "rescale_factor": 1 / 127.5,
    "rescale_offset": True,
    "do_normalize": False,
    "include_top": False,
}


def bert_tokenizer(max_length: int = 52) -> BertTokenizer:
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(VOCABULARY)}, model_max_length=max_length)


def clip_pictures(side: int = 32) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def align_folder(folder: Path, **pictures: Any) -> AlignModel:
    torch.manual_seed(0)
    config = AlignConfig(text_config=BERT, vision_config=EFFICIENTNET, projection_dim=80, temperature_init_value=0.4)
    model = moved(AlignModel(config))
    with torch.no_grad():
        # Running statistics of real pictures: with the initial ones all pictures look alike.
        model.train().get_image_features(torch.randn(8, 3, 64, 64))
    model.eval().save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    EfficientNetImageProcessorPil(**(ALIGN_PICTURES | pictures)).save_pretrained(folder)
    return model.eval()


def chinese_clip_folder(folder: Path) -> ChineseCLIPModel:
    torch.manual_seed(0)
    model = moved(ChineseCLIPModel(ChineseCLIPConfig(text_config=BERT, vision_config=VIT, projection_dim=12)))
    model.save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    clip_pictures().save_pretrained(folder)
    return model.eval()


def dual_encoder_folder(folder: Path, vision: str = "vit") -> VisionTextDualEncoderModel:
    torch.manual_seed(0)
    text_config = RobertaConfig(**BERT, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    vision_config = {"vit": ViTConfig, "clip": CLIPVisionConfig}[vision](**VIT)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision_config, text_config, projection_dim=12)
    model = moved(VisionTextDualEncoderModel(config))
    model.save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    clip_pictures().save_pretrained(folder)
    return model.eval()


class Runs:
    """Pickled, an order to make a file: it is there if anything of the pickle was run."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (self.trace,)  # type: ignore[return-value]


def write_malicious(file: Path, trace: Path) -> None:
    """A file of torch.save whose pickle makes the file `trace` when it is read carelessly."""
    torch.save({"state_dict": {"logit_scale": torch.zeros(())}, "more": Runs(trace)}, file)
    assert pickle.dumps(Runs(trace))
