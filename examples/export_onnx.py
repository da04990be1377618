"""Write both towers as ONNX, for any batch and any text length, and hold them against the model.

python examples/export_onnx.py runs/demo/bundle runs/onnx        (needs the extra `onnx`)
"""

import argparse
from pathlib import Path

from ko_en_clip import KoEnClipModel, KoEnClipProcessor
from ko_en_clip.conversion.onnx import to_onnx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("output_dir", type=Path)
    arguments = parser.parse_args()
    model = KoEnClipModel.from_pretrained(arguments.model)
    processor = KoEnClipProcessor.from_pretrained(arguments.model)
    print(to_onnx(model, processor, arguments.output_dir).table())


if __name__ == "__main__":
    main()
