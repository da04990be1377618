"""Write both towers as ONNX, for any batch and any text length, and hold them against the model.

python examples/export_onnx.py runs/demo/bundle runs/onnx        (needs the extra `onnx`)
"""

import argparse
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch.export import Dim
from transformers import AutoProcessor

from ko_en_clip import KoEnClipTextModelWithProjection, KoEnClipVisionModelWithProjection


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("output_dir", type=Path)
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)

    text = KoEnClipTextModelWithProjection.from_pretrained(arguments.model).eval()
    vision = KoEnClipVisionModelWithProjection.from_pretrained(arguments.model).eval()
    tokenizer = AutoProcessor.from_pretrained(arguments.model).tokenizer
    batch, length = Dim("batch"), Dim("tokens", max=text.config.max_position_embeddings)

    def tokens(*texts: str) -> dict[str, torch.Tensor]:
        return dict(tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt"))

    def pixels(num: int) -> dict[str, torch.Tensor]:
        # The size of the pictures is fixed in the file; another size takes another file.
        return {"pixel_values": torch.randn(num, 3, vision.config.image_size, vision.config.image_size)}

    text_shapes = {name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")}
    # Each is traced with one batch and checked with another.
    files: list[tuple[str, Any, str, Any, Any, Any]] = [
        ("text", text, "text_embeds", tokens("고양이 사진", "a dog"), tokens("눈 덮인 산과 호수"), text_shapes),
        ("vision", vision, "image_embeds", pixels(2), pixels(3), {"pixel_values": {0: batch}}),
    ]
    for name, tower, output, traced, checked, shapes in files:
        file = arguments.output_dir / f"{name}.onnx"
        torch.onnx.export(
            tower,
            kwargs=traced,
            f=file,
            dynamo=True,
            dynamic_shapes=shapes,
            output_names=[output, "last_hidden_state"],
            external_data=False,
            verbose=False,
        )
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (found,) = session.run([output], {key: tensor.numpy() for key, tensor in checked.items()})
        with torch.no_grad():
            difference = (torch.from_numpy(found) - tower(**checked)[output]).abs().max().item()
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {output} within {difference:.1e} of torch")


if __name__ == "__main__":
    main()
