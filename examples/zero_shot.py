"""Classify pictures with Korean and English labels.

python examples/zero_shot.py runs/demo/bundle picture.png --labels "왼쪽에 삼, 오른쪽에 칠" "a one followed by a two"
"""

import argparse

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

import ko_en_clip  # noqa: F401  (registers the classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--labels", nargs="+", required=True)
    arguments = parser.parse_args()

    model = AutoModel.from_pretrained(arguments.model).eval()
    processor = AutoProcessor.from_pretrained(arguments.model)
    pictures = [Image.open(picture) for picture in arguments.pictures]
    inputs = processor(text=arguments.labels, images=pictures, return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**inputs).logits_per_image.softmax(dim=-1)
    for picture, row in zip(arguments.pictures, probabilities, strict=True):
        best = int(row.argmax())
        print(f"{picture}: {arguments.labels[best]} ({100 * row[best]:.1f} %)")


if __name__ == "__main__":
    main()
