"""The processor under transformers' own common tests of processors."""

import unittest

import pytest
from upstream import common

from ko_en_clip import KoEnClipImageProcessor, KoEnClipProcessor, KoEnClipTokenizerFast

processing = common("test_processing_common")


@pytest.fixture(scope="module", autouse=True)
def small_tokenizer(tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    ProcessorTest.tokenizer = tiny_tokenizer


class ProcessorTest(processing.ProcessorTesterMixin, unittest.TestCase):
    processor_class = KoEnClipProcessor
    tokenizer: KoEnClipTokenizerFast

    @classmethod
    def _setup_tokenizer(cls) -> KoEnClipTokenizerFast:
        return cls.tokenizer

    @classmethod
    def _setup_image_processor(cls) -> KoEnClipImageProcessor:
        return KoEnClipImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
