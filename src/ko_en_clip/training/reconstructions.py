"""Pictures of what a masked autoencoder sees and what it makes of it, as in He et al. 2022, figure 2."""

import torch
from PIL import Image, ImageDraw, ImageFont

from ..image_processing_ko_en_clip import KoEnClipImageProcessor
from ..modeling_ko_en_clip_mae import KoEnClipForPreTraining, patchify, unpatchify

COLUMNS = ("original", "masked", "reconstruction", "with visible patches")
# Pixels that a picture's shorter side has at least, about, and pixels between pictures.
_CELL, _GAP = 224, 6
_TITLE_HEIGHT = 32


@torch.no_grad()
def draw_reconstructions(
    model: KoEnClipForPreTraining,
    pixel_values: torch.Tensor,
    image_processor: KoEnClipImageProcessor,
    noise: torch.Tensor | None = None,
) -> Image.Image:
    """A row for each picture: original, visible patches, prediction, and prediction with the visible patches laid on.

    A model trained with `norm_pix_loss` predicts patches of mean 0 and variance 1. They are given the mean and
    variance of the original's patches, hidden ones too, so the picture then shows more than the model knows: its
    coarse colours are the original's. To judge colours, train with `norm_pix_loss` off.

    Args:
        model: on any device, in any dtype.
        pixel_values: float, (batch, 3, height, width), as `image_processor` makes them.
        image_processor: whose mean and standard deviation are undone.
        noise: float, (batch, patches); the smallest stay visible. Drawn when absent.

    Returns:
        RGB. Small pictures are magnified by a whole number, so that pixels stay sharp.

    Reference: He et al. 2022, section 3 and figure 2.
    """
    patch_size, sides = model.vision_model.config.patch_size, pixel_values.shape[-2:]
    outputs = model(
        pixel_values.to(model.device, model.dtype), noise=None if noise is None else noise.to(model.device)
    )
    original, predicted = patchify(pixel_values.float().cpu(), patch_size), outputs.logits.float().cpu()
    if model.config.norm_pix_loss:
        variance, mean = torch.var_mean(original, dim=-1, keepdim=True)
        predicted = predicted * (variance + 1e-6).sqrt() + mean
    hidden = outputs.mask.bool().cpu()[:, :, None]
    # 0 is the mean colour once the normalisation is undone: a middle grey.
    columns = (original, original.masked_fill(hidden, 0.0), predicted, torch.where(hidden, predicted, original))
    pictures = [_eight_bits(unpatchify(patches, patch_size, *sides), image_processor) for patches in columns]
    return _sheet(torch.stack(pictures, dim=1))


def _eight_bits(pixel_values: torch.Tensor, image_processor: KoEnClipImageProcessor) -> torch.Tensor:
    """The uint8 colours, (batch, height, width, 3), of normalised pixels."""
    mean, std = torch.tensor(image_processor.image_mean), torch.tensor(image_processor.image_std)
    colours = pixel_values.permute(0, 2, 3, 1) * std + mean
    return (colours.clamp(0, 1) * 255).round().to(torch.uint8)


def _sheet(pictures: torch.Tensor) -> Image.Image:
    """One picture of a table of them, (rows, columns, height, width, 3), under titles and between white gaps."""
    num_rows, num_columns, height, width, _ = pictures.shape
    zoom = max(1, round(_CELL / min(height, width)))
    height, width = zoom * height, zoom * width
    size = (num_columns * (width + _GAP) - _GAP, _TITLE_HEIGHT + num_rows * (height + _GAP) - _GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    for column, title in enumerate(COLUMNS):
        left = column * (width + _GAP)
        draw.text((left + width // 2, _TITLE_HEIGHT // 2), title, fill="black", font=font, anchor="mm")
        for row in range(num_rows):
            cell = Image.fromarray(pictures[row, column].numpy()).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(cell, (left, _TITLE_HEIGHT + row * (height + _GAP)))
    return sheet
