"""Fine-tune with transformers' own Trainer; the loss is exact on several processes too.

python examples/finetune_with_trainer.py runs/demo/bundle runs/finetuned --steps 20
torchrun --nproc-per-node 2 examples/finetune_with_trainer.py runs/demo/bundle runs/finetuned --steps 20
"""

import argparse
import random
from typing import Any

import torch
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments

import ko_en_clip  # noqa: F401  (registers the classes)
from ko_en_clip.data.digits import load_digit_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("output_dir")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()

    model = AutoModel.from_pretrained(arguments.model)
    processor = AutoProcessor.from_pretrained(arguments.model)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        texts = [random.choice(row["caption_ko"] + row["caption_en"]) for row in rows]
        batch = processor(text=texts, images=[row["image"] for row in rows], return_tensors="pt")
        # Rows of the same pair are not negatives of each other.
        groups = torch.tensor([int(row["pair"].replace(" ", "")) for row in rows])
        return {**batch, "groups": groups, "return_loss": True}

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=arguments.output_dir,
            max_steps=arguments.steps,
            per_device_train_batch_size=32,
            learning_rate=1e-4,
            logging_steps=5,
            report_to=[],
            save_strategy="no",
            remove_unused_columns=False,
        ),
        train_dataset=load_digit_pairs("test"),
        data_collator=collate,
    )
    trainer.train()
    if trainer.is_world_process_zero():
        model.save_pretrained(arguments.output_dir)
        processor.save_pretrained(arguments.output_dir)


if __name__ == "__main__":
    main()
