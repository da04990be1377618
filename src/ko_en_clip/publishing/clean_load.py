"""What a stranger's computer does with a bundle: load every part of it, embed one picture and two texts.

`bundle.py` calls `embed_samples` here, with the package, for what to expect, and runs this file as the program of a
process that must not have the package. Hence no import from the package.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
)

# From its module: transformers 5.17 exports a stand-in at the top level where torchvision is absent.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

PACKAGE = "ko_en_clip"
TEXTS = ["눈 덮인 산과 호수", "A photo of a snowy mountain and a lake"]


def embed_samples(source: str, trust_remote_code: bool) -> dict[str, torch.Tensor]:
    """Tokens, pixels and embeddings of the samples, by name, each part loaded by its own Auto class.

    Args:
        source: a folder, or the name of a repository in the Hub cache.
        trust_remote_code: whether the code beside the weights is run.
    """
    parts = {
        auto_class.__name__: auto_class.from_pretrained(source, trust_remote_code=trust_remote_code)
        for auto_class in (AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer)
    }
    for auto_class in (AutoModel, AutoModelForZeroShotImageClassification):
        # In float32 whatever the weights are kept in: half precision on a CPU differs with the number of threads.
        parts[auto_class.__name__] = auto_class.from_pretrained(
            source, trust_remote_code=trust_remote_code, dtype=torch.float32
        )
    if trust_remote_code:
        _check_origin(parts)
    picture = _picture()
    inputs = parts["AutoProcessor"](text=TEXTS, images=picture, padding=True, truncation=True, return_tensors="pt")
    tokens = parts["AutoTokenizer"](TEXTS, padding=True, truncation=True, return_tensors="pt")
    pixels = parts["AutoImageProcessor"](picture, return_tensors="pt")
    with torch.inference_mode():
        outputs = parts["AutoModel"].eval()(**inputs)
        zero_shot_outputs = parts["AutoModelForZeroShotImageClassification"].eval()(**inputs)
    return {
        "input_ids": inputs["input_ids"],
        "input_ids (AutoTokenizer)": tokens["input_ids"],
        "pixel_values": inputs["pixel_values"],
        "pixel_values (AutoImageProcessor)": pixels["pixel_values"],
        "image_embeds": outputs.image_embeds,
        "image_embeds (AutoModelForZeroShotImageClassification)": zero_shot_outputs.image_embeds,
        "text_embeds": outputs.text_embeds,
        "text_embeds (AutoModelForZeroShotImageClassification)": zero_shot_outputs.text_embeds,
    }


def _check_origin(parts: dict[str, object]) -> None:
    """All parts run the code beside the weights, none a class that happens to be known by the same name."""
    # transformers_modules.NAME, then a hash that differs from part to part where NAME is a folder.
    packages = {name: ".".join(type(part).__module__.split(".")[:2]) for name, part in parts.items()}
    if len(set(packages.values())) > 1 or not packages["AutoModel"].startswith("transformers_modules."):
        raise RuntimeError(
            f"the parts come from {packages}; all must come from one package under transformers_modules. "
            "See auto_map in the JSON files of the bundle."
        )


def _picture() -> Image.Image:
    """64 by 48 pixels without symmetry, so that swapped sides and channels show."""
    rows, columns = np.mgrid[:48, :64]
    return Image.fromarray(np.stack([rows * 5, columns * 3, rows * columns % 251], axis=-1).astype(np.uint8))


class _RefusePackage:
    """Import hook that hides the package, however it is installed."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if name.partition(".")[0] == PACKAGE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def main(output_folder: str, *sources: str) -> None:
    """Write what each source embeds, in order, as `0.safetensors`, `1.safetensors` and so on."""
    sys.meta_path.insert(0, _RefusePackage())
    assert PACKAGE not in sys.modules, f"{PACKAGE} was imported before it could be hidden"
    for index, source in enumerate(sources):
        tensors = embed_samples(source, trust_remote_code=True)
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, Path(output_folder) / f"{index}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
