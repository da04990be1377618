"""AutoAugment's policy for ImageNet (Cubuk et al. 2019): two operations on a view, from 25 pairs that a search found.

Chinese-CLIP trains with it (Yang et al. 2022, appendix A.2), through timm's policy "original", and so it is here. The
paper gives the pairs (appendix A, table 9), the range of each operation's magnitude (table 6), and ten evenly spaced
levels in it; it does not say which end a level counts from. Against the paper, "original" has these choices:

- A level is a tenth of the range, so that the highest, 9, stops a tenth short of its end: 27 degrees of 30.
- Posterize keeps 4 bits and another for every whole 2.5 levels: 6 bits at levels 5 to 7, and 7 at level 8. Solarize
  inverts from 256 x level / 10 on, cut to a whole number. Both grow milder with the level.
- Colour, contrast and sharpness run from 0.1 at level 0 to 1.9, and 1 changes nothing; only shear and rotation go
  either way by chance. The paper's other operations are in none of the pairs, and so not here.
- What comes in over the edge has the mean colour of CLIP's pictures, and pixels between pixels are bicubic.

The operations are Pillow's, as in the paper.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

Operation = Literal[
    "ShearX",
    "Rotate",
    "AutoContrast",
    "Invert",
    "Equalize",
    "Solarize",
    "Posterize",
    "Contrast",
    "Color",
    "Sharpness",
]


class Step(NamedTuple):
    """One operation of a pair."""

    operation: Operation
    probability: float
    """How likely the operation is."""
    level: int
    """Magnitude in tenths of its range; operations that have none ignore it."""


# Cubuk et al. 2019, table 9. The last five pairs are there twice.
IMAGENET_POLICY = (
    (Step("Posterize", 0.4, 8), Step("Rotate", 0.6, 9)),
    (Step("Solarize", 0.6, 5), Step("AutoContrast", 0.6, 5)),
    (Step("Equalize", 0.8, 8), Step("Equalize", 0.6, 3)),
    (Step("Posterize", 0.6, 7), Step("Posterize", 0.6, 6)),
    (Step("Equalize", 0.4, 7), Step("Solarize", 0.2, 4)),
    (Step("Equalize", 0.4, 4), Step("Rotate", 0.8, 8)),
    (Step("Solarize", 0.6, 3), Step("Equalize", 0.6, 7)),
    (Step("Posterize", 0.8, 5), Step("Equalize", 1.0, 2)),
    (Step("Rotate", 0.2, 3), Step("Solarize", 0.6, 8)),
    (Step("Equalize", 0.6, 8), Step("Posterize", 0.4, 6)),
    (Step("Rotate", 0.8, 8), Step("Color", 0.4, 0)),
    (Step("Rotate", 0.4, 9), Step("Equalize", 0.6, 2)),
    (Step("Equalize", 0.0, 7), Step("Equalize", 0.8, 8)),
    (Step("Invert", 0.6, 4), Step("Equalize", 1.0, 8)),
    (Step("Color", 0.6, 4), Step("Contrast", 1.0, 8)),
    (Step("Rotate", 0.8, 8), Step("Color", 1.0, 2)),
    (Step("Color", 0.8, 8), Step("Solarize", 0.8, 7)),
    (Step("Sharpness", 0.4, 7), Step("Invert", 0.6, 8)),
    (Step("ShearX", 0.6, 5), Step("Equalize", 1.0, 9)),
    (Step("Color", 0.4, 0), Step("Equalize", 0.6, 3)),
    (Step("Equalize", 0.4, 7), Step("Solarize", 0.2, 4)),
    (Step("Solarize", 0.6, 5), Step("AutoContrast", 0.6, 5)),
    (Step("Invert", 0.6, 4), Step("Equalize", 1.0, 8)),
    (Step("Color", 0.6, 4), Step("Contrast", 1.0, 8)),
    (Step("Equalize", 0.8, 8), Step("Equalize", 0.6, 3)),
)
# Mean of CLIP's pictures (0.4815, 0.4578, 0.4082), of 255.
_EDGE = (123, 117, 104)


def auto_augment(view: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The view after one pair of the policy, of which both, one or none of the operations happen.

    Args:
        view: uint8, (3, height, width).
        generator: decides what happens; five numbers are drawn from it in every case.

    Returns:
        uint8, (3, height, width).

    Raises:
        ValueError: the view has not three channels; the operations know no opacity.
    """
    if len(view) != 3:
        raise ValueError(
            f"AutoAugment changes pictures of 3 channels, and this one has {len(view)}; lay it on a background first."
        )
    drawn = drawn_operations(generator)
    if not drawn:
        return view
    picture = Image.fromarray(view.permute(1, 2, 0).contiguous().numpy())
    for operation, magnitude in drawn:
        picture = operated(picture, operation, magnitude)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def drawn_operations(generator: torch.Generator) -> list[tuple[Operation, float]]:
    """The operations that happen, with their magnitudes as `operated` takes them: two, one or none."""
    draw = torch.rand(5, generator=generator).tolist()
    pair = IMAGENET_POLICY[int(draw[0] * len(IMAGENET_POLICY))]
    return [
        (step.operation, magnitude_of(step, negative=sign < 0.5))
        for step, chance, sign in zip(pair, draw[1:3], draw[3:5], strict=True)
        if chance < step.probability
    ]


def magnitude_of(step: Step, *, negative: bool) -> float:
    """A step's magnitude in the unit of its operation; `negative` counts for shear and rotation alone."""
    share = step.level / 10
    match step.operation:
        case "ShearX":
            size = 0.3 * share
        case "Rotate":
            size = 30.0 * share
        case "AutoContrast" | "Invert" | "Equalize":
            return 0.0
        case "Solarize":
            return float(int(256 * share))
        case "Posterize":
            return float(4 + int(4 * share))
        case "Contrast" | "Color" | "Sharpness":
            return 0.1 + 1.8 * share
    return -size if negative else size


def operated(picture: Image.Image, operation: Operation, magnitude: float) -> Image.Image:
    """An RGB picture after an operation, of the same size.

    Args:
        picture: what to change.
        operation: what happens.
        magnitude: slope of a shear; degrees of a rotation, counter-clockwise;
            lowest brightness that solarize inverts; bits that posterize keeps; otherwise the factor of Pillow's
            ImageEnhance, where 1 changes nothing.
    """
    match operation:
        case "ShearX":
            # Of x and y in the result, the place in the picture: a x + b y + c and d x + e y + f.
            across = (1, magnitude, 0, 0, 1, 0)
            return picture.transform(
                picture.size, Image.Transform.AFFINE, across, Image.Resampling.BICUBIC, fillcolor=_EDGE
            )
        case "Rotate":
            return picture.rotate(magnitude, Image.Resampling.BICUBIC, fillcolor=_EDGE)
        case "AutoContrast":
            return ImageOps.autocontrast(picture)
        case "Invert":
            return ImageOps.invert(picture)
        case "Equalize":
            return ImageOps.equalize(picture)
        case "Solarize":
            return ImageOps.solarize(picture, int(magnitude))
        case "Posterize":
            return ImageOps.posterize(picture, int(magnitude))
        case "Contrast":
            return ImageEnhance.Contrast(picture).enhance(magnitude)
        case "Color":
            return ImageEnhance.Color(picture).enhance(magnitude)
        case "Sharpness":
            return ImageEnhance.Sharpness(picture).enhance(magnitude)
