"""Time of the text tower on captions padded to 77 tokens, as a ratio to transformers' CLIPTextModel in the same run.

    python benchmarks/text_padding.py CAPTIONS

CAPTIONS is a text file with one caption a line; a tokenizer is trained on it. Every variant has the same weights and
takes the same batches in turn; the ratio is of the medians. `share` is real tokens over places in the batch cut to its
longest row: the figure by which the tower chooses between cutting and packing.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel

from ko_en_clip import KoEnClipTextConfig, KoEnClipTextModel, modeling_ko_en_clip_towers
from ko_en_clip.tokenizer_training import TokenizerSettings, train_tokenizer

WIDTH, LAYERS = 512, 12


def main() -> None:
    """Print one row for each way of drawing a batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    captions = arguments.captions.read_text(encoding="utf-8").splitlines()
    tokenizer = train_tokenizer(captions, TokenizerSettings(vocab_size=16384))
    by_length = sorted(captions, key=lambda caption: len(tokenizer(caption)["input_ids"]))
    fields = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        **{name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
    }
    stock = CLIPTextModel(CLIPTextConfig(**fields)).eval()
    ours = KoEnClipTextModel(KoEnClipTextConfig(**fields)).eval()
    ours.load_state_dict(stock.state_dict(), strict=False)

    generator = torch.Generator().manual_seed(0)
    mixed = [captions[row] for row in torch.randperm(len(captions), generator=generator)[: arguments.batch_size]]
    middle = len(by_length) // 2
    similar = by_length[middle : middle + arguments.batch_size]
    half = arguments.batch_size // 2
    for name, texts in (("drawn", mixed), ("alike", similar), ("two lengths", by_length[:half] + by_length[-half:])):
        batch = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        measure(name, stock, ours, dict(batch), arguments.rounds)


def measure(
    name: str, stock: CLIPTextModel, ours: KoEnClipTextModel, batch: dict[str, torch.Tensor], rounds: int
) -> None:
    """Forward and backward of every variant, in turn."""
    share_above, share_below = 0.0, 1.1

    def run(model: torch.nn.Module, packed_share: float) -> None:
        modeling_ko_en_clip_towers.PACKED_SHARE = packed_share
        model(**batch).pooler_output.sum().backward()

    variants: dict[str, Callable[[], None]] = {
        "stock, 77 columns": lambda: run(stock, share_above),
        "cut to the longest": lambda: run(ours, share_above),
        "packed": lambda: run(ours, share_below),
    }
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for _ in range(rounds + 1):
        for variant, step in variants.items():
            start = time.perf_counter()
            step()
            seconds[variant].append(time.perf_counter() - start)
    lengths = batch["attention_mask"].sum(dim=1)
    share = float(lengths.sum()) / (len(lengths) * int(lengths.max()))
    base = statistics.median(seconds["stock, 77 columns"][1:])
    ratios = ", ".join(f"{variant} {statistics.median(times[1:]) / base:.3f}" for variant, times in seconds.items())
    print(f"{name}: mean {lengths.float().mean():.1f}, longest {int(lengths.max())}, share {share:.2f}: {ratios}")


if __name__ == "__main__":
    main()
