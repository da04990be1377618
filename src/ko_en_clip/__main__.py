"""The command line: `ko-en-clip VERB`, or `accelerate launch -m ko_en_clip VERB` on several processes.

Every flag is a field of a settings dataclass; jsonargparse makes the parsers. `--config` takes a YAML file or the name
of a packaged recipe.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from jsonargparse import ActionConfigFile, ArgumentParser

from .commands import classify, convert, demo, distill, evaluate, pretrain, publish, train, train_tokenizer
from .settings_files import build_settings, find_settings_file, packaged
from .training.classification import ClassificationSettings
from .training.settings import ContrastiveSettings, DistillationSettings, StageSettings

VERBS: dict[str, tuple[type, Callable[[Any], None], str]] = {
    "demo": (demo.DemoSettings, demo.run, "all stages on the embedded set, with a report"),
    "train-tokenizer": (train_tokenizer.TrainTokenizerSettings, train_tokenizer.run, "a joint Korean-English BPE"),
    "pretrain": (StageSettings, pretrain.run, "masked pre-training of the vision tower (MAE)"),
    "train": (ContrastiveSettings, train.run, "contrastive training of both towers"),
    "distill": (DistillationSettings, distill.run, "a text tower taught by an English model's on parallel text"),
    "classify": (ClassificationSettings, classify.run, "a picture classifier from a trained model"),
    "evaluate": (
        evaluate.EvaluateSettings,
        evaluate.run,
        "any CLIP-type model on suites of tasks, beside its peers",
    ),
    "convert": (
        convert.ConvertSettings,
        convert.run,
        "other systems' weights in and out, with a check of what they give",
    ),
    "publish": (publish.PublishSettings, publish.publish, "a bundle that loads without this package, and the Hub"),
}
# Of some verbs one field is given without its name.
POSITIONAL = {
    "evaluate": {"model": "Folder or Hub id of the model."},
    "convert": {"source": "File, folder or Hub id."},
    "publish": {"model": "Folder of the model."},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    parser = _parser()
    try:
        parsed = parser.parse_args(_with_recipe_paths(sys.argv[1:] if arguments is None else arguments))
    except FileNotFoundError as error:
        parser.error(str(error))
    verb = parsed.subcommand
    settings_class, run, _ = VERBS[verb]
    try:
        run(build_settings(settings_class, parser.instantiate(parsed)[verb].as_dict()))
    except (ValueError, OSError, ModuleNotFoundError, FloatingPointError, StrictDataclassError) as error:
        # Mistakes that a person can mend; anything else keeps its traceback.
        sys.exit(f"ko-en-clip {verb}: {error}")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="ko-en-clip", description="A Korean-English CLIP: train, evaluate, publish.")
    subcommands = parser.add_subcommands(required=True, metavar="VERB")
    for verb, (settings_class, _, description) in VERBS.items():
        subparser = ArgumentParser(description=f"{description[0].upper()}{description[1:]}.")
        subparser.add_argument(
            "--config",
            action=ActionConfigFile,
            help=f"A YAML file or a packaged recipe: {', '.join(packaged('recipes'))}.",
        )
        positional = POSITIONAL.get(verb, {})
        for name, described in positional.items():
            subparser.add_argument(name, type=str, help=described)
        subparser.add_class_arguments(settings_class, skip=set(positional))
        subcommands.add_subcommand(verb, subparser, help=description)
    return parser


def _with_recipe_paths(arguments: Sequence[str]) -> list[str]:
    """Arguments in which `--config NAME` of a packaged recipe has become its path."""
    resolved = list(arguments)
    for position, argument in enumerate(resolved):
        name = argument.removeprefix("--config=")
        is_value = argument.startswith("--config=") or (position > 0 and resolved[position - 1] == "--config")
        if is_value:
            path = str(find_settings_file(name, "recipes"))
            resolved[position] = f"--config={path}" if argument.startswith("--config=") else path
    return resolved


if __name__ == "__main__":
    main()
