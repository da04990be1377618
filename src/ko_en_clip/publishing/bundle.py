"""Bundles: folders that load anywhere, with the package or with `trust_remote_code` alone.

Reads a folder that training wrote; `hub.py` uploads what is written here. A bundle holds the weights, the tokenizer,
the settings, the shipped source files and the card.
"""

import fnmatch
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file

from .. import manifests
from ..configuration_ko_en_clip import KoEnClipConfig
from ..modeling_ko_en_clip import KoEnClipModel
from ..processing_ko_en_clip import KoEnClipProcessor
from . import clean_load
from .model_card import CardFacts, EvaluationResults, render_card

# Absolute difference allowed between embeddings of the package and of the clean process.
TOLERANCE = 1e-5

SHIPPED_FILES = (
    "configuration_ko_en_clip.py",
    "image_decoding_ko_en_clip.py",
    "image_processing_ko_en_clip.py",
    "losses_ko_en_clip.py",
    "modeling_ko_en_clip.py",
    "modeling_ko_en_clip_resnet.py",
    "modeling_ko_en_clip_towers.py",
    "processing_ko_en_clip.py",
    "sizes_ko_en_clip.py",
    "tokenization_ko_en_clip.py",
)
# A tokenizer is a pair: the slow class, which there is none of, and the fast one.
AUTO_MAP: dict[str, str | list[str | None]] = {
    "AutoConfig": "configuration_ko_en_clip.KoEnClipConfig",
    "AutoModel": "modeling_ko_en_clip.KoEnClipModel",
    "AutoModelForImageClassification": "modeling_ko_en_clip.KoEnClipForImageClassification",
    "AutoModelForZeroShotImageClassification": "modeling_ko_en_clip.KoEnClipModel",
    "AutoTokenizer": [None, "tokenization_ko_en_clip.KoEnClipTokenizerFast"],
    "AutoImageProcessor": "image_processing_ko_en_clip.KoEnClipImageProcessor",
    "AutoProcessor": "processing_ko_en_clip.KoEnClipProcessor",
}
_FILE_PATTERNS = (
    "README.md",
    "*config.json",
    "tokenizer.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "*_ko_en_clip*.py",
)
_PACKAGE_FOLDER = Path(__file__).parent.parent


def write_bundle(
    model_folder: Path,
    bundle_folder: Path,
    facts: CardFacts | None = None,
    results: EvaluationResults | None = None,
    repo_id: str | None = None,
    checked: bool = False,
) -> None:
    """Write the bundle of a trained model; an older bundle in its place is replaced whole or not at all.

    Args:
        model_folder: weights, tokenizer and image processor, as training writes them.
        bundle_folder: where to write: a new or empty folder, or an older bundle.
        facts: what a person states in the card.
        results: what the evaluation found, for the card.
        repo_id: repository that the card's example names.
        checked: whether `check_bundle` has to pass before the bundle takes its place.

    Raises:
        RuntimeError: the check did not pass; nothing was written.
        FileNotFoundError: `model_folder` holds no model.
        ValueError: `model_folder` holds another kind of model or not all of its weights, or `bundle_folder` holds
            files that are not a bundle's.
    """
    _check_replaceable(bundle_folder)
    model = _load_model(model_folder)
    processor = KoEnClipProcessor.from_pretrained(model_folder)
    bundle_folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the bundle, so that the renaming stays on one file system.
    with tempfile.TemporaryDirectory(dir=bundle_folder.parent, prefix=f".{bundle_folder.name}-") as scratch:
        new_folder = Path(scratch) / "new"
        model.save_pretrained(new_folder)
        processor.save_pretrained(new_folder)
        _write_auto_map(new_folder)
        for name in SHIPPED_FILES:
            shutil.copyfile(_PACKAGE_FOLDER / name, new_folder / name)
        card = render_card(model, facts or CardFacts(), results, repo_id)
        (new_folder / "README.md").write_text(card, encoding="utf-8")
        if checked:
            check_bundle(new_folder, model_folder)
        _swap(new_folder, bundle_folder, Path(scratch) / "old")


def bundle_files(bundle_folder: Path) -> list[Path]:
    """The files of a bundle that are for others: all but the manifest, which names folders of this computer."""
    return sorted(file for file in bundle_folder.iterdir() if is_bundle_file(file.name))


def is_bundle_file(name: str) -> bool:
    """Whether a file of this name belongs to a bundle and is replaced with it."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _FILE_PATTERNS)


def check_bundle(bundle_folder: Path, model_folder: Path | None = None) -> None:
    """Load the bundle in a process without the package, as a folder and from a Hub cache, and compare embeddings.

    Args:
        bundle_folder: what `write_bundle` wrote.
        model_folder: model whose embeddings, loaded by the package, the bundle must reproduce; default the bundle
            itself.

    Raises:
        RuntimeError: the bundle does not load there, or embeds otherwise than the package; the message holds what
            the process reported.
    """
    expected = clean_load.embed_samples(str(model_folder or bundle_folder), trust_remote_code=False)
    with tempfile.TemporaryDirectory(prefix="clean-load-") as scratch:
        as_folder, from_hub = _embed_in_clean_process(bundle_folder.resolve(), Path(scratch))
    _compare(expected, as_folder, f"{bundle_folder}, loaded as a folder")
    _compare(expected, from_hub, f"{bundle_folder}, loaded from a Hub cache")


def _check_replaceable(bundle_folder: Path) -> None:
    if not bundle_folder.exists() or (bundle_folder.is_dir() and not any(bundle_folder.iterdir())):
        return
    if bundle_folder.is_dir():
        names = {entry.name for entry in bundle_folder.iterdir()}
        foreign = sorted(name for name in names if not is_bundle_file(name) and name != manifests.FILE_NAME)
        if (
            {"README.md", "config.json"} <= names
            and not foreign
            and _is_ours(_read_json(bundle_folder / "config.json"))
        ):
            return
        found = f"files that no bundle has: {foreign}" if foreign else "no bundle of a Korean-English CLIP"
    else:
        found = "a file"
    raise ValueError(
        f"{bundle_folder} is there and is {found}; only an older bundle is overwritten. "
        "Give a new folder, or move away what is in this one."
    )


def _is_ours(config: dict[str, Any]) -> bool:
    return config.get("model_type") == KoEnClipConfig.model_type and "auto_map" in config


def _load_model(model_folder: Path) -> KoEnClipModel:
    """The contrastive model of a folder, with all its weights."""
    file = model_folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{model_folder} has no config.json. Give the folder of a trained model.")
    config = _read_json(file)
    if config.get("model_type") != KoEnClipConfig.model_type:
        raise ValueError(
            f"{model_folder} holds a model of model_type {config.get('model_type')!r}; a bundle is made of "
            f"{KoEnClipConfig.model_type!r}. Convert the model first."
        )
    if "KoEnClipForPreTraining" in (config.get("architectures") or ()):
        raise ValueError(
            f"{model_folder} holds a masked autoencoder (KoEnClipForPreTraining), whose text tower is untrained. "
            "Train the contrastive model from it and publish that."
        )
    model, loaded = cast(
        tuple[KoEnClipModel, dict[str, Any]], KoEnClipModel.from_pretrained(model_folder, output_loading_info=True)
    )
    if loaded["missing_keys"]:
        raise ValueError(
            f"{model_folder} lacks the weights {sorted(loaded['missing_keys'])}; they would be published with random "
            "values. Give the folder of a whole model."
        )
    return model


def _write_auto_map(folder: Path) -> None:
    """Say in every settings file which class of which shipped file loads it."""
    _update_json(folder / "config.json", auto_map=AUTO_MAP)
    _update_json(folder / "tokenizer_config.json", auto_map=_auto_map_of("AutoTokenizer"))
    # AutoProcessor reads the whole of the file, AutoImageProcessor nothing but the part inside.
    image_processor = _read_json(folder / "processor_config.json")["image_processor"]
    _update_json(
        folder / "processor_config.json",
        auto_map=_auto_map_of("AutoProcessor"),
        image_processor=image_processor | {"auto_map": _auto_map_of("AutoImageProcessor")},
    )


def _auto_map_of(auto_class: str) -> dict[str, str | list[str | None]]:
    return {auto_class: AUTO_MAP[auto_class]}


def _update_json(file: Path, **entries: object) -> None:
    content = _read_json(file) | entries
    file.write_text(json.dumps(content, ensure_ascii=False, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read_json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _swap(new_folder: Path, bundle_folder: Path, old_folder: Path) -> None:
    """Put the new folder in the place of the old one, or leave the old one where it is."""
    try:
        if bundle_folder.exists():
            bundle_folder.rename(old_folder)
        new_folder.rename(bundle_folder)
    except BaseException:
        # An interrupt too: the old folder lies where the caller cleans up.
        if old_folder.exists() and not bundle_folder.exists():
            old_folder.rename(bundle_folder)
        raise


def _embed_in_clean_process(bundle_folder: Path, scratch: Path) -> tuple[dict[str, torch.Tensor], ...]:
    """What the bundle embeds as a folder and from a Hub cache, in a process that has neither package nor network."""
    cache, results = scratch / "hub", scratch / "results"
    results.mkdir()
    repo_id = _write_hub_cache(bundle_folder, cache)
    environment = os.environ | {
        "HF_HOME": str(scratch / "home"),
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(scratch / "modules"),
    }
    # -P: the program's own folder is not searched for modules.
    command = [sys.executable, "-P", clean_load.__file__, str(results), str(bundle_folder), repo_id]
    process = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        raise RuntimeError(
            f"{bundle_folder} does not load without the package (exit status {process.returncode}); it must not be "
            f"uploaded. The clean process reported:\n{process.stderr}"
        )
    return tuple(load_file(results / f"{index}.safetensors") for index in range(2))


def _write_hub_cache(bundle_folder: Path, cache: Path) -> str:
    """Lay out a bundle as huggingface_hub caches a download; gives the repository's name."""
    organization, name, commit = "clean", "load", "0" * 40
    repository = cache / f"models--{organization}--{name}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit, encoding="ascii")
    for file in bundle_files(bundle_folder):
        (snapshot / file.name).symlink_to(file)
    return f"{organization}/{name}"


def _compare(expected: dict[str, torch.Tensor], actual: dict[str, torch.Tensor], what: str) -> None:
    for name, tensor in expected.items():
        if not torch.isfinite(actual[name]).all():
            raise RuntimeError(f"{what}: {name} has values that are not finite. Check the weights.")
        if tensor.shape != actual[name].shape:
            raise RuntimeError(
                f"{what}: {name} has shape {tuple(actual[name].shape)}, with the package {tuple(tensor.shape)}."
            )
        difference = (tensor.double() - actual[name].double()).abs().max().item()
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"{what}: {name} differs by {difference:.3g} from what the package gives; {TOLERANCE} is allowed. "
                "Write the bundle again from the model."
            )
