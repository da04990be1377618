"""Chinese-CLIP in: transformers' `ChineseCLIPModel`, and the checkpoints of its own code (Yang et al. 2022).

Its vision tower is CLIP's and becomes the native one. Its text tower is RoBERTa-wwm-ext, which has BERT's
architecture and is pooled at [CLS] (section 2.2).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BertConfig, BertTokenizer, ChineseCLIPConfig

from ko_en_clip import KoEnClipConfig, KoEnClipImageProcessor, KoEnClipProcessor, KoEnClipVisionConfig
from ko_en_clip.sizes_ko_en_clip import SIZES

from .converted import Converted
from .folders import LEFT_OUT, build_model, read_config, read_processor, read_weights, tower_fields
from .key_maps import TRANSPOSED, Rule
from .openai_layout import RESNET_RULES, VIT_RULES, vision_shape
from .parity import TEXTS, Parity, compare_with, sample_pictures
from .reading import read_tensors
from .reference.chinese_clip import ChineseClipReference
from .reference.pictures import reference_pixels
from .reference.wordpiece import ReferenceWordPiece

FOLDER_RULES = (
    # [CLS] is taken as it is; folders that have a pooler do not use it.
    Rule("text_model.pooler.{name}", (), LEFT_OUT),
    Rule("{name}", "{name}"),
)
TEXT_RULES = (
    Rule("bert.pooler.{name}", (), LEFT_OUT),
    Rule("bert.{name}", "text_model.{name}"),
    Rule("text_projection", "text_projection.weight", TRANSPOSED),
    Rule("logit_scale", "logit_scale"),
)
# Tokens of a text, [CLS] and [SEP] included, in the released code.
_CONTEXT_LENGTH = 52
_VOCABULARY = "vocab.txt"


def from_chinese_clip(folder: Path) -> Converted:
    """The model of a folder that `ChineseCLIPModel.save_pretrained` wrote, with its WordPiece and image processor.

    Raises:
        FileNotFoundError: configuration or weights are not there.
        RefusedFileError: a file is damaged or needs code to be read.
        ValueError: keys are unknown, missing or of another shape, or the folder has no tokenizer or image processor.
    """
    source = read_config(folder, ChineseCLIPConfig)
    config = KoEnClipConfig(
        text_config={"model_type": "bert", **tower_fields(source.text_config, BertConfig)},
        vision_config=tower_fields(source.vision_config, KoEnClipVisionConfig),
        projection_dim=source.projection_dim,
        text_pooling="cls",
        logit_scale_init_value=source.logit_scale_init_value,
    )
    # Not through ChineseCLIPModel, which makes the row of the padding token zero when it loads.
    model = build_model(config, read_weights(folder), FOLDER_RULES, str(folder))
    processor = read_processor(folder, config.text_config)  # type: ignore[arg-type]
    return Converted(model, processor, f"Chinese-CLIP, {folder}", [])


def from_chinese_clip_checkpoint(
    file: Path,
    *,
    vocabulary: Path | None = None,
    num_text_heads: int | None = None,
    num_vision_heads: int | None = None,
) -> Converted:
    """The model of a checkpoint of Chinese-CLIP's own code, `clip_cn_*.pt`.

    What its code fixes for every model is taken from there: QuickGELU in the vision tower, BERT's GELU, layer norm
    and dropout in the text tower, pictures resized to a square without cropping, texts of 52 tokens.

    Args:
        file: the checkpoint.
        vocabulary: `vocab.txt` of RoBERTa-wwm-ext; default the one beside the file.
        num_text_heads: heads of the text tower; needed where its width is none of the published models'.
        num_vision_heads: heads of the vision tower, likewise.

    Raises:
        FileNotFoundError: the checkpoint or the vocabulary is not there.
        RefusedFileError: the checkpoint is damaged or needs code to be read.
        ValueError: keys are unknown, missing or of another shape, or heads or vocabulary have to be said.
    """
    tensors = read_tensors(file)
    for key in ("bert.embeddings.word_embeddings.weight", "text_projection", "visual.conv1.weight"):
        if key not in tensors:
            raise ValueError(
                f"{file} has no {key}; every checkpoint of Chinese-CLIP has. Give one of its clip_cn_*.pt."
            )
    vision = _vision_fields(tensors, num_vision_heads, str(file))
    is_resnet = "depths" in vision
    config = KoEnClipConfig(
        text_config=_text_fields(tensors, num_text_heads, str(file)),
        vision_config=vision,
        projection_dim=tensors["text_projection"].shape[1],
        text_pooling="cls",
        use_visual_projection=not is_resnet,
    )
    rules = (*TEXT_RULES, *(RESNET_RULES if is_resnet else VIT_RULES))
    model = build_model(config, tensors, rules, str(file))
    processor = _processor(vocabulary or file.with_name(_VOCABULARY), model.config)
    notes = ["The pooler of BERT was left out; Chinese-CLIP does not use it."] * (
        "bert.pooler.dense.weight" in tensors
    )
    return Converted(model, processor, f"Chinese-CLIP, {file}", notes)


def chinese_clip_checkpoint_parity(file: Path, made: Converted, vocabulary: Path | None = None) -> Parity:
    """How far the converted model is from the source's maths on its own tensors, tokens and pixels included.

    Args:
        file: what `from_chinese_clip_checkpoint` read.
        made: what it gave.
        vocabulary: as given to it.
    """
    config = made.model.config
    vision = config.vision_config
    reference = ChineseClipReference(
        read_tensors(file),
        num_text_heads=config.text_config.num_attention_heads,
        head_width=vision.hidden_size // vision.num_attention_heads,
    )

    def inputs() -> tuple[list[list[int]], torch.Tensor]:
        tokenizer = ReferenceWordPiece(vocabulary or file.with_name(_VOCABULARY))
        side = vision.image_size
        # Squares to begin with, of which nothing is cut.
        squares = [picture.resize((side, side), Image.Resampling.BICUBIC) for picture in sample_pictures()]
        return [tokenizer(text, _CONTEXT_LENGTH) for text in TEXTS], reference_pixels(squares, side)

    return compare_with(made, reference, inputs, "an independent forward pass from Chinese-CLIP's keys")


def _text_fields(tensors: Mapping[str, torch.Tensor], num_heads: int | None, source_name: str) -> dict[str, Any]:
    """BERT's fields, all but the heads from shapes."""
    table, width = tensors["bert.embeddings.word_embeddings.weight"].shape
    layers = {key.split(".")[3] for key in tensors if key.startswith("bert.encoder.layer.")}
    return {
        "model_type": "bert",
        "vocab_size": table,
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": num_heads or _published_heads("text", width, source_name),
        "intermediate_size": len(tensors["bert.encoder.layer.0.intermediate.dense.bias"]),
        "max_position_embeddings": len(tensors["bert.embeddings.position_embeddings.weight"]),
        "type_vocab_size": len(tensors["bert.embeddings.token_type_embeddings.weight"]),
    }


def _vision_fields(tensors: Mapping[str, torch.Tensor], num_heads: int | None, source_name: str) -> dict[str, Any]:
    """Fields of the ViT or the ResNet, all but the ViT's heads from shapes."""
    try:
        fields = vision_shape(tensors)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{source_name} has no whole vision tower: {error} is missing, or of another shape."
        ) from error
    if "depths" in fields:
        # The released code has heads of 64 there, at any width.
        return fields
    heads = num_heads or _published_heads("vision", fields["hidden_size"], source_name)
    return {**fields, "num_attention_heads": heads, "hidden_act": "quick_gelu"}


def _published_heads(tower: str, width: int, source_name: str) -> int:
    """Heads of the published towers of a width; weights do not show them."""
    for name, size in SIZES.items():
        config = size[f"{tower}_config"]
        if name.startswith("chinese_clip") and "depths" not in config and config["hidden_size"] == width:
            return int(config["num_attention_heads"])
    raise ValueError(
        f"the {tower} tower of {source_name} is {width} wide, as none of Chinese-CLIP's published is, and a "
        f"checkpoint does not say how many heads it has. Set num_{tower}_heads."
    )


def _processor(vocabulary: Path, config: KoEnClipConfig) -> KoEnClipProcessor:
    """WordPiece of the released code, lower case, and its square pictures."""
    if not vocabulary.is_file():
        raise FileNotFoundError(
            f"{vocabulary} is not there, and a checkpoint of Chinese-CLIP holds no vocabulary. Set vocabulary to the "
            "vocab.txt that comes with its code."
        )
    lines = vocabulary.read_text(encoding="utf-8").splitlines()
    ids = {line.strip(): number for number, line in enumerate(lines)}
    rows = config.text_config.vocab_size  # type: ignore[union-attr]
    if len(ids) != rows or not {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"} <= set(ids):
        raise ValueError(
            f"{vocabulary} has {len(ids)} entries, and the token embedding of the checkpoint {rows} rows, the five "
            "special tokens of BERT among them. Set vocabulary to the vocab.txt that comes with the code."
        )
    tokenizer = BertTokenizer(vocab=ids, do_lower_case=True, model_max_length=_CONTEXT_LENGTH)
    # BERT's own gives up a word at 100 characters.
    tokenizer.backend_tokenizer.model.max_input_chars_per_word = 200
    side = config.vision_config.image_size  # type: ignore[union-attr]
    square = {"height": side, "width": side}
    pictures = KoEnClipImageProcessor(size=square, crop_size=square, do_center_crop=False)
    return KoEnClipProcessor(image_processor=pictures, tokenizer=tokenizer)
