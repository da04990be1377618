"""transformers' own common tests, as `make` fetched them, and stand-ins for what the source package leaves out.

The source package on PyPI holds the common tests but not the folders beside them that they import from.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Beside the environment whose transformers they belong to; the Makefile puts them there.
FOLDER = Path(sys.prefix) / "transformers-tests/tests"
FIXTURES = Path(__file__).parent

# What `PreTrainedConfig` itself takes, each value unlike its default: ConfigTester checks that every one arrives.
COMMON_SETTINGS: dict[str, Any] = {
    "architectures": ["AnArchitecture"],
    "chunk_size_feed_forward": 7,
    "dtype": "float16",
    "id2label": {0: "a", 1: "b", 2: "c"},
    "is_encoder_decoder": True,
    "label2id": {"a": 0, "b": 1, "c": 2},
    "output_hidden_states": True,
    "problem_type": "regression",
    "return_dict": False,
}


def common(name: str) -> Any:
    """The module `name` of transformers' common tests; skips the importing module where they were not fetched."""
    if not (FOLDER / "__init__.py").is_file():
        pytest.skip(
            f"{FOLDER} is absent; `make transformers-tests` fetches the common tests of the installed transformers.",
            allow_module_level=True,
        )
    if "transformers_tests" not in sys.modules:
        package = _module("transformers_tests")
        package.__path__ = [str(FOLDER)]
        _stand_ins()
    return importlib.import_module(f"transformers_tests.{name}")


def _stand_ins() -> None:
    # Our models generate nothing, so nothing of this mixin would run.
    _module("transformers_tests.generation")
    _module("transformers_tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    # test_models.py has an export test of its own.
    _module("transformers_tests.exporters")
    _module("transformers_tests.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    _module("transformers_tests.utils")
    _module("transformers_tests.utils.test_configuration_utils", config_common_kwargs=COMMON_SETTINGS)
    # It maps addresses of test pictures to copies on disk; no test of ours gets as far as to open one.
    _module("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)


def _module(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module
    return module
