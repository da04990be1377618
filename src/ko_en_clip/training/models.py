"""What a stage starts from and what it leaves: configuration, processor, weights, manifest."""

import dataclasses
import difflib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from accelerate import Accelerator
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_ko_en_clip import KoEnClipConfig, KoEnClipTextConfig
from ..data.loading import Source
from ..image_processing_ko_en_clip import KoEnClipImageProcessor
from ..manifests import hash_folder, write_manifest
from ..modeling_ko_en_clip import KoEnClipModel
from ..processing_ko_en_clip import KoEnClipProcessor
from ..tokenization_ko_en_clip import KoEnClipTokenizerFast
from .checkpoints import Progress
from .pretrained_processors import special_ids, text_pooling_of, tower_image_processor, tower_tokenizer
from .pretrained_towers import PretrainedTower, check_vision_pooling, fitted, listed, load_tower, read_tower
from .settings import ModelSettings, StageSettings

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=PreTrainedModel)


def starting_point(settings: ModelSettings) -> tuple[KoEnClipConfig, KoEnClipProcessor]:
    """Configuration and processor of a run: those of `init`, or the ones that towers, `config` and `tokenizer` make.

    Raises:
        FileNotFoundError: the tokenizer's folder does not exist.
        ValueError: there is no such size or field, a pre-trained tower does not fit what is asked of it, or the vision
            tower does not say how large pictures are.
    """
    if settings.init is not None:
        return _starting_point_of(settings.init, settings.config)
    fields = _known_fields("model.config", settings.config, KoEnClipConfig)
    vision, text = _pretrained(settings)
    joint: dict[str, Any] = {}
    tokenizer: PreTrainedTokenizerBase
    if text is None:
        tokenizer = _new_tokenizer(settings.tokenizer)
    else:
        changes = _known_fields("model.config.text_config", fields.get("text_config", {}), type(text.config))
        text_config = text.config_with(changes)
        tokenizer = tower_tokenizer(text, text_config, settings.tokenizer, settings.max_text_tokens)
        pooling = fields.get("text_pooling") or text_pooling_of(text, tokenizer)
        fields["text_config"] = text.config_with({**changes, **special_ids(text, tokenizer, pooling)})
        joint |= {**text.joint, "text_pooling": pooling}
    if vision is not None:
        changes = _known_fields("model.config.vision_config", fields.get("vision_config", {}), type(vision.config))
        fields["vision_config"] = vision.config_with(changes)
        joint |= vision.joint
        check_vision_pooling(vision, fields.get("vision_pooling", joint["vision_pooling"]))
    config = _configured(settings.size, {**joint, **fields}, tokenizer)
    image_processor = _image_processor(settings, vision, config)
    return config, KoEnClipProcessor(image_processor=image_processor, tokenizer=tokenizer)


def _pretrained(settings: ModelSettings) -> tuple[PretrainedTower | None, PretrainedTower | None]:
    """The pre-trained vision and text tower, where there are such."""
    return (
        read_tower("vision_config", settings.vision_init) if settings.vision_init else None,
        read_tower("text_config", settings.text_init) if settings.text_init else None,
    )


def _starting_point_of(init: str, changes: dict[str, Any]) -> tuple[KoEnClipConfig, KoEnClipProcessor]:
    """Configuration and processor of a whole model, with other values of fields that no weight depends on."""
    config, processor = KoEnClipConfig.from_pretrained(init), KoEnClipProcessor.from_pretrained(init)
    if not changes:
        return config, processor
    fields = _known_fields("model.config", changes, KoEnClipConfig)
    for name in KoEnClipConfig.sub_configs:
        tower = read_tower(name, init)
        known = _known_fields(f"model.config.{name}", fields.get(name, {}), type(tower.config))
        fields[name] = tower.config_with(known)
    changed = KoEnClipConfig.from_dict({**config.to_dict(), **fields})
    if _image_size(changed) != _image_size(config):
        processor.image_processor = sized(processor.image_processor, _image_size(changed))
    return changed, processor


def _new_tokenizer(folder: str | None) -> KoEnClipTokenizerFast:
    """The tokenizer of a new text tower.

    Raises:
        FileNotFoundError: the folder has none.
    """
    assert folder is not None
    if not Path(folder, "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"model.tokenizer is {folder!r}, which has no tokenizer.json; ko-en-clip train-tokenizer makes such a "
            "folder."
        )
    return KoEnClipTokenizerFast.from_pretrained(folder)


def _image_processor(
    settings: ModelSettings, vision: PretrainedTower | None, config: KoEnClipConfig
) -> KoEnClipImageProcessor:
    """The image processor of the vision tower's folder, or the one that the settings make.

    Raises:
        ValueError: it makes pictures that the vision tower does not take, or nothing says how large they are.
    """
    size = _image_size(config)
    if vision is not None and not settings.image_processor:
        processor = tower_image_processor(vision.origin)
        return processor if size == getattr(vision.config, "image_size", None) else sized(processor, size)
    if not isinstance(size, int):
        raise ValueError(
            f"vision_config.image_size is {size!r}; training needs the side of its pictures in pixels. Towers of "
            f"{config.vision_config.model_type} without such a field cannot be trained from here."
        )
    return sized(KoEnClipImageProcessor(**settings.image_processor), size)


def _image_size(config: KoEnClipConfig) -> Any:
    """Side of the pictures that a vision tower is made for; not every tower of transformers says so."""
    return getattr(config.vision_config, "image_size", None)


def sized(processor: KoEnClipImageProcessor, side: int) -> KoEnClipImageProcessor:
    """The image processor for squares of this side, whole or cut from the middle as it did before."""
    square = {"height": side, "width": side}
    size = {"shortest_edge": side} if processor.do_center_crop else square
    return KoEnClipImageProcessor.from_dict({**processor.to_dict(), "size": size, "crop_size": square})


def _configured(size: str | None, fields: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> KoEnClipConfig:
    """The configuration that `size` and `config` name, a new text tower with the tokenizer's vocabulary.

    Raises:
        ValueError: there is no such size, or a field is none of the class it is given for.
    """
    start = KoEnClipConfig.from_size(size) if size else None
    fields = dict(fields)
    for name in KoEnClipConfig.sub_configs:
        given = fields.get(name, {})
        if isinstance(given, PreTrainedConfig):
            continue
        model_type = given.get("model_type", getattr(start, name).model_type if start else None)
        known = _known_fields(f"model.config.{name}", given, KoEnClipConfig.tower_config_class(name, model_type))
        fields[name] = known if model_type is None else {**known, "model_type": model_type}
        if name == "text_config":
            fields[name] |= {
                "vocab_size": len(tokenizer),
                "pad_token_id": tokenizer.pad_token_id,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
            }
            if model_type in (None, KoEnClipTextConfig.model_type):
                fields[name]["max_position_embeddings"] = tokenizer.model_max_length
    return KoEnClipConfig.from_size(size, **fields) if size else KoEnClipConfig(**fields)


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


def starting_model(
    model_class: type[Model], config: KoEnClipConfig, settings: ModelSettings, *, whole: bool = False
) -> Model:
    """The model of a run in float32: with the weights of `init`, of pre-trained towers, or fresh ones.

    transformers reports which weights the folder of `init` did not have and are new; of a pre-trained tower every
    weight has to be there, and the log says what came with it.

    Args:
        model_class: KoEnClipModel, KoEnClipForPreTraining or KoEnClipForImageClassification.
        config: what `starting_point` returned.
        settings: the settings that it was given.
        whole: whether every weight has to be in the folder of `init`.

    Raises:
        ValueError: a folder lacks weights of its tower or of its model, or a text tower is given to a model without
            one.
    """
    if settings.init is not None:
        return _loaded(model_class, config, settings, whole)
    model = model_class._from_config(config, dtype=torch.float32, attn_implementation=settings.attn_implementation)
    vision, text = _pretrained(settings)
    taken: set[str] = set()
    if vision is not None:
        # A temperature that is asked for, or that belongs to another loss, is not CLIP's.
        asked = {"logit_scale_init_value", "logit_bias_init_value"} & set(settings.config)
        taken |= load_tower(model, vision, with_logit_scale=not asked and vision.loss_type == config.loss_type)
    if text is not None:
        if not isinstance(model, KoEnClipModel):
            raise ValueError(
                f"model.text_init is {settings.text_init!r}, but {model_class.__name__} has no text tower; give it to "
                "`train`, with the folder that this stage leaves as vision_init."
            )
        taken |= load_tower(model, text, with_logit_scale=False)
    logger.info("new weights: %s", listed(name for name in model.state_dict() if name not in taken))
    return model


def _loaded(model_class: type[Model], config: KoEnClipConfig, settings: ModelSettings, whole: bool) -> Model:
    """The model of `init`, its position table resized where pictures have another size."""
    assert settings.init is not None
    stored = KoEnClipConfig.from_pretrained(settings.init)
    if _image_size(stored) == _image_size(config):
        stored = config
    else:
        stored.id2label, stored.label2id = config.id2label, config.label2id
    loaded: tuple[Model, dict[str, Any]] = model_class.from_pretrained(  # type: ignore[assignment]
        settings.init,
        config=stored,
        dtype=torch.float32,
        attn_implementation=settings.attn_implementation,
        output_loading_info=True,
    )
    model, report = loaded
    # A classifier is new where a joint model begins to classify.
    missing = [name for name in report["missing_keys"] if not name.startswith("classifier.")]
    if whole and missing:
        raise ValueError(
            f"fine-tuning asks for a whole model to start from, and {settings.init} has no weights of "
            f"{listed(missing)}; train it first. (`train` does without where finetuning is left out.)"
        )
    if stored is config:
        return model
    resized = model_class._from_config(config, dtype=torch.float32, attn_implementation=settings.attn_implementation)
    resized.load_state_dict(fitted(model.state_dict(), resized.state_dict()))
    return resized


def save_run(
    accelerator: Accelerator,
    model: PreTrainedModel,
    processor: KoEnClipProcessor,
    *,
    verb: str,
    settings: StageSettings,
    sources: Sequence[Source],
    progress: Progress,
    teacher: str | None = None,
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
        names = ("init", "vision_init", "text_init", "tokenizer")
        given = {name: getattr(settings.model, name) for name in names} | {"teacher": teacher}
        origins = {name: at for name, at in given.items() if at}
        inputs = {
            "data": [source.fingerprint() for source in sources],
            "model": {name: hash_folder(Path(at)) if Path(at).is_dir() else at for name, at in origins.items()},
            "progress": dict(vars(progress)),
        }
        write_manifest(folder, stage=verb, settings=settings, inputs=inputs)
    accelerator.wait_for_everyone()
