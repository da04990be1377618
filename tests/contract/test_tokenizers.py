"""The tokenizer under transformers' own common tests of tokenizers and of their Rust back-end."""

import unittest

import pytest
from upstream import FIXTURES, common

from ko_en_clip import KoEnClipTokenizerFast

tokenization = common("test_tokenization_common")
# The source package leaves out the sample text that every class of tests reads first.
tokenization.get_tests_dir = lambda: str(FIXTURES)

# One of the common tests leaves the files open that it reads.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture(scope="module", autouse=True)
def saved_tokenizer(tiny_tokenizer: KoEnClipTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The common tests load from a Hub id; a folder will do."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer.save_pretrained(folder)
    TokenizerTest.from_pretrained_id = [str(folder)]


class TokenizerTest(tokenization.TokenizersBackendTesterMixin, tokenization.TokenizerTesterMixin, unittest.TestCase):
    tokenizer_class = KoEnClipTokenizerFast
    rust_tokenizer_class = KoEnClipTokenizerFast
    from_pretrained_id: list[str] | None = None
    # One test truncates to the greatest length and pads to a multiple of 8, which 77 is not.
    from_pretrained_kwargs = {"model_max_length": 80}

    @classmethod
    def setUpClass(cls) -> None:
        # Each mixin has its own preparation; the second one's holds all that the first one's does.
        tokenization.TokenizerTesterMixin.setUpClass.__func__(cls)
