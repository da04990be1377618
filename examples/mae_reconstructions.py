"""Train a small masked autoencoder on a folder of pictures, or take a trained one, and draw what it reconstructs.

1,200 steps take 3 to 4 CPU-minutes; on 74 photos they show coarse colours and the layout of pictures not trained on.

python examples/mae_reconstructions.py photos reconstructions.png
python examples/mae_reconstructions.py photos reconstructions.png --model runs/demo/pretrain
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from ko_en_clip import KoEnClipConfig, KoEnClipForPreTraining, KoEnClipImageProcessor
from ko_en_clip.data.augmentation import AugmentationSettings, random_view
from ko_en_clip.data.collation import normalized
from ko_en_clip.training.optimization import learning_rate_at, make_optimizer
from ko_en_clip.training.reconstructions import draw_reconstructions
from ko_en_clip.training.settings import OptimizationSettings

TOWER = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
# Raw pixels as targets, as in He et al.'s released demonstration: the model has to find the colours too.
CONFIG = KoEnClipConfig(
    vision_config={**TOWER, "image_size": 64, "patch_size": 8},
    norm_pix_loss=False,
    decoder_hidden_size=128,
    decoder_num_hidden_layers=2,
    decoder_num_attention_heads=4,
)
VIEWS = AugmentationSettings(crop_scale=(0.25, 1.0), flip=0.5)
OPTIMIZATION = OptimizationSettings(learning_rate=1.5e-3, warmup_steps=50, betas=(0.9, 0.95), weight_decay=0.05)


def opened(file: Path, longest_side: int) -> Image.Image:
    picture = ImageOps.exif_transpose(Image.open(file))
    picture.thumbnail((longest_side, longest_side))
    return picture


def train(pictures: list[torch.Tensor], processor: KoEnClipImageProcessor, steps: int) -> KoEnClipForPreTraining:
    model, generator = KoEnClipForPreTraining(CONFIG), torch.Generator().manual_seed(0)
    optimizer = make_optimizer(model, OPTIMIZATION)
    for step in (progress := tqdm(range(steps))):
        drawn = torch.randint(len(pictures), (32,), generator=generator)
        views = torch.stack([random_view(pictures[number], 64, VIEWS, generator) for number in drawn])
        loss = model(normalized(views, processor)).loss
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps, OPTIMIZATION)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path, help="folder of .jpg and .png files")
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--model", help="folder that `ko-en-clip pretrain` wrote; default: train one here")
    parser.add_argument("--steps", type=int, default=1200)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    files = sorted(file for file in arguments.pictures.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    # Every thirteenth picture is drawn, and never trained on.
    shown, rest = files[::13], [file for number, file in enumerate(files) if number % 13]
    if arguments.model:
        model = KoEnClipForPreTraining.from_pretrained(arguments.model)
        processor = KoEnClipImageProcessor.from_pretrained(arguments.model)
    else:
        processor = KoEnClipImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
        pictures = [processor.process_image(opened(file, 192), do_convert_rgb=True) for file in rest]
        model = train(pictures, processor, arguments.steps)
    pixel_values = processor([opened(file, 1024) for file in shown], return_tensors="pt")["pixel_values"]
    draw_reconstructions(model, pixel_values, processor).save(arguments.output)


if __name__ == "__main__":
    main()
