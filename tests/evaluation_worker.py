"""One process of an evaluation that `test_features.py` looks at; started alone or by torch.distributed.run."""

import json
import sys
from pathlib import Path

import datasets
from accelerate import PartialState

from ko_en_clip.commands.evaluate import EvaluateSettings, run
from ko_en_clip.evaluation import features
from ko_en_clip.evaluation.embeddings import TransformersEncoder


def evaluate(folder: Path, output_dir: Path) -> None:
    """Judge with small parts, and say how many pictures this process embedded."""
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    features.PART_SIZE = 4
    original, made = TransformersEncoder.images, []

    def counted(self, pictures):
        embeds = original(self, pictures)
        made.append(len(embeds))
        return embeds

    TransformersEncoder.images = counted
    try:
        run(EvaluateSettings(model=str(folder / "model"), suite=str(folder / "dots.yaml"), output_dir=str(output_dir)))
    except ValueError as error:
        # Before the launcher ends this process because of the other.
        (output_dir / f"error{PartialState().process_index}.txt").write_text(str(error), encoding="utf-8")
        raise
    (output_dir / f"process{PartialState().process_index}.json").write_text(json.dumps(sum(made)), encoding="utf-8")
    if PartialState().num_processes > 1:
        PartialState().destroy_process_group()


if __name__ == "__main__":
    evaluate(Path(sys.argv[1]), Path(sys.argv[2]))
