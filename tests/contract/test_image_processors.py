"""The image processor under transformers' own common tests of image processors."""

import unittest
from typing import Any
from unittest.mock import patch

import torch
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from upstream import common

from ko_en_clip import KoEnClipImageProcessor

images = common("test_image_processing_common")
# transformers 5.17 exports a stand-in at the top level where torchvision is absent.
images.AutoImageProcessor = AutoImageProcessor

SETTINGS: dict[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 20},
    "do_center_crop": True,
    "crop_size": {"height": 18, "width": 18},
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_convert_rgb": True,
}


class Pictures:
    """Pictures of chance content and size, and the settings that the processor is made with."""

    batch_size = 7
    num_channels = 3
    image_processing_classes = {"pil": KoEnClipImageProcessor}

    def __init__(self, parent: Any = None):
        self.parent = parent

    def prepare_image_processor_dict(self) -> dict[str, Any]:
        return dict(SETTINGS)

    def prepare_image_inputs(self, **kwargs: Any) -> list[Any]:
        sizes = {
            "batch_size": self.batch_size,
            "num_channels": self.num_channels,
            "min_resolution": 30,
            "max_resolution": 400,
        }
        made: list[Any] = images.prepare_image_inputs(**{**sizes, **kwargs})
        return made

    def prepare_processor_inputs(self, **kwargs: Any) -> dict[str, list[Any]]:
        return {"images": self.prepare_image_inputs(**kwargs)}

    def expected_output_image_shape(self, pictures: list[Any]) -> tuple[int, int, int]:
        return self.num_channels, SETTINGS["crop_size"]["height"], SETTINGS["crop_size"]["width"]


class ImageProcessorTest(images.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = Pictures
    test_cast_dtype = torch.float16
    # transformers 5.17 to 5.19 read these from the test, later ones from the tester.
    image_processing_classes = Pictures.image_processing_classes
    image_processor_dict = SETTINGS

    def setUp(self) -> None:
        self.image_processor_tester = Pictures()

    def test_call_numpy_4_channels(self) -> None:
        # Unless told not to, ours makes arrays RGB, too (transparent ones on white); CLIP's only PIL pictures.
        with patch.dict(SETTINGS, do_convert_rgb=False):
            super().test_call_numpy_4_channels()
