"""What a stage starts from and what it leaves: configuration, processor, weights, manifest."""

import dataclasses
import difflib
import shutil
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from accelerate import Accelerator
from transformers import PreTrainedModel

from ..configuration_ko_en_clip import KoEnClipConfig, KoEnClipTextConfig
from ..data.pairs import PairSet
from ..image_processing_ko_en_clip import KoEnClipImageProcessor
from ..manifests import hash_folder, write_manifest
from ..processing_ko_en_clip import KoEnClipProcessor
from ..tokenization_ko_en_clip import KoEnClipTokenizerFast
from .checkpoints import Progress
from .settings import ModelSettings, StageSettings

Model = TypeVar("Model", bound=PreTrainedModel)


def starting_point(settings: ModelSettings) -> tuple[KoEnClipConfig, KoEnClipProcessor]:
    """Configuration and processor of a run: those of `init`, or the ones that `config` and `tokenizer` make.

    Raises:
        FileNotFoundError: the tokenizer's folder does not exist.
        ValueError: there is no such size or field, or the vision tower does not say how large pictures are.
    """
    if settings.init is not None:
        return KoEnClipConfig.from_pretrained(settings.init), KoEnClipProcessor.from_pretrained(settings.init)
    assert settings.tokenizer is not None
    if not Path(settings.tokenizer, "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"model.tokenizer is {settings.tokenizer!r}, which has no tokenizer.json; ko-en-clip train-tokenizer "
            "makes such a folder."
        )
    tokenizer = KoEnClipTokenizerFast.from_pretrained(settings.tokenizer)
    config = _configured(settings, tokenizer)
    size = getattr(config.vision_config, "image_size", None)
    if not isinstance(size, int):
        raise ValueError(
            f"vision_config.image_size is {size!r}; training needs the side of its pictures in pixels. Towers of "
            f"{config.vision_config.model_type} without such a field cannot be trained from here."
        )
    image_processor = KoEnClipImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, **settings.image_processor
    )
    return config, KoEnClipProcessor(image_processor=image_processor, tokenizer=tokenizer)


def _configured(settings: ModelSettings, tokenizer: KoEnClipTokenizerFast) -> KoEnClipConfig:
    """The configuration that `size` and `config` name, with the tokenizer's vocabulary.

    Raises:
        ValueError: there is no such size, or a field is none of the class it is given for.
    """
    start = KoEnClipConfig.from_size(settings.size) if settings.size else None
    fields = _known_fields("model.config", settings.config, KoEnClipConfig)
    for name in KoEnClipConfig.sub_configs:
        given = fields.get(name, {})
        model_type = given.get("model_type", getattr(start, name).model_type if start else None)
        known = _known_fields(f"model.config.{name}", given, KoEnClipConfig.tower_config_class(name, model_type))
        fields[name] = known if model_type is None else {**known, "model_type": model_type}
    text_config = fields["text_config"]
    text_config |= {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if text_config.get("model_type") in (None, KoEnClipTextConfig.model_type):
        text_config["max_position_embeddings"] = tokenizer.model_max_length
    return KoEnClipConfig.from_size(settings.size, **fields) if settings.size else KoEnClipConfig(**fields)


def _known_fields(where: str, values: dict[str, Any], config_class: type) -> dict[str, Any]:
    """Fields of a configuration, with what the command line gave as text read as YAML.

    Raises:
        ValueError: a name that is no field, which transformers' configurations would accept in silence.
    """
    known = {field.name for field in dataclasses.fields(config_class)} | {"model_type"}
    unknown = sorted(set(values) - known)
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        raise ValueError(f"{where} has no field {unknown[0]!r}{f'; did you mean {close[0]!r}?' if close else '.'}")
    return {name: yaml.safe_load(value) if isinstance(value, str) else value for name, value in values.items()}


def starting_model(model_class: type[Model], config: KoEnClipConfig, settings: ModelSettings) -> Model:
    """The model of a run in float32: with the weights of `init`, or fresh ones.

    transformers reports which weights the folder did not have and are new.
    """
    if settings.init is None:
        return model_class._from_config(config, attn_implementation=settings.attn_implementation)
    return model_class.from_pretrained(
        settings.init, dtype=torch.float32, attn_implementation=settings.attn_implementation
    )


def save_run(
    accelerator: Accelerator,
    model: PreTrainedModel,
    processor: KoEnClipProcessor,
    *,
    verb: str,
    settings: StageSettings,
    pairs: PairSet,
    progress: Progress,
) -> None:
    """Put model, processor and manifest into the run's folder, the manifest last; call it on every process."""
    if accelerator.is_main_process:
        folder = Path(settings.run.output_dir)
        partial = folder / "model.partial"
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        for file in partial.iterdir():
            file.replace(folder / file.name)
        partial.rmdir()
        origin = Path(settings.model.init or settings.model.tokenizer or "")
        inputs = {
            "data": pairs.fingerprint(),
            "model": hash_folder(origin) if origin.is_dir() else str(origin),
            "progress": dict(vars(progress)),
        }
        write_manifest(folder, stage=verb, settings=settings, inputs=inputs)
    accelerator.wait_for_everyone()
