"""Fine-tune low-rank adapters (LoRA, Hu et al. 2021) in both towers with PEFT and transformers' own Trainer.

python examples/finetune_with_lora.py runs/demo/bundle runs/lora --steps 20        (needs `pip install peft`)

Writes `adapter` (small, for PeftModel.from_pretrained) and `merged` (a model like any other).
"""

import argparse
import random
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments

import ko_en_clip  # noqa: F401  (registers the classes)
from ko_en_clip.data.digits import load_digit_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("output_dir")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()

    processor = AutoProcessor.from_pretrained(arguments.model)
    layers = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    # The logit scale stays as it is: PEFT adapts modules, and it is a bare parameter.
    model = get_peft_model(
        AutoModel.from_pretrained(arguments.model), LoraConfig(r=8, lora_alpha=16, target_modules=layers)
    )
    model.print_trainable_parameters()

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
            learning_rate=1e-3,
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
        model.save_pretrained(f"{arguments.output_dir}/adapter")
        model.merge_and_unload().save_pretrained(f"{arguments.output_dir}/merged")
        processor.save_pretrained(f"{arguments.output_dir}/merged")


if __name__ == "__main__":
    main()
