"""Augmentations that tests of views and of batches share."""

from ko_en_clip.data.augmentation import AugmentationSettings

PLAIN = AugmentationSettings()
CROPS = AugmentationSettings(crop_scale=(0.3, 1.0), flip=0.5)
EVERYTHING = AugmentationSettings(
    crop_scale=(0.5, 1.0),
    flip=0.5,
    rotation=20.0,
    zoom=(0.8, 1.2),
    shift=0.1,
    stretch=0.1,
    shear=0.1,
    warp=0.05,
    brightness=0.2,
    contrast=0.2,
    saturation=0.5,
    hue=0.2,
    grey=0.2,
    background=0.5,
    thicken=0.5,
    blur=0.5,
    erase=0.5,
)
