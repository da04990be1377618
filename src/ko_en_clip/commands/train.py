"""`ko-en-clip train`: contrastive training, judged on held-out data as it goes, with a report at the end."""

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from accelerate import PartialState
from transformers import PreTrainedModel

from ..configuration_ko_en_clip import KoEnClipConfig
from ..evaluation.held_out import held_out_figures, held_out_suites
from ..evaluation.report import new_figure
from ..evaluation.run_report import REPORT_FILE, write_run_report
from ..training.contrastive import train_contrastive
from ..training.models import starting_point
from ..training.settings import ContrastiveSettings, StageSettings

Settings = TypeVar("Settings", bound=StageSettings)


def run(settings: ContrastiveSettings) -> None:
    """Train, and write the model and `report.html` into `run.output_dir`."""
    evaluate = held_out_evaluation(settings)
    guess = _guessing_loss(settings, starting_point(settings.model)[0])
    run_with_report(partial(train_contrastive, evaluate=evaluate), settings, guess)


def run_with_report(stage: Callable[[Settings], None], settings: Settings, guessing_loss: float | None = None) -> None:
    """Run a stage, then draw its logs; those of a run that diverged are drawn too, and its error goes on.

    Raises:
        ModuleNotFoundError: matplotlib is absent; found out before the stage begins.
    """
    new_figure(1, 1)
    folder = Path(settings.run.output_dir)
    # What is in the folder when the run ends is hashed into its manifest, and this page will be another; unfinished
    # files are not.
    page, aside = folder / REPORT_FILE, folder / f"{REPORT_FILE}.partial"
    with suppress(FileNotFoundError):
        page.rename(aside)
    try:
        stage(settings)
    except FloatingPointError:
        aside.unlink(missing_ok=True)
        _report(folder, guessing_loss)
        raise
    except BaseException:
        with suppress(FileNotFoundError):
            aside.rename(page)
        raise
    aside.unlink(missing_ok=True)
    _report(folder, guessing_loss)


def held_out_evaluation(settings: StageSettings) -> Callable[[PreTrainedModel], dict[str, float]] | None:
    """The function that gives figures of a model on `run.eval_suites`; none where no suite is named.

    Raises:
        FileNotFoundError: there is no such suite.
        ValueError: two suites have one name, or one asks nothing of a model.
    """
    if not settings.run.eval_suites:
        return None
    suites = held_out_suites(settings.run.eval_suites)
    processor = starting_point(settings.model)[1]
    return lambda model: held_out_figures(suites, model, processor)


def _report(folder: Path, guessing_loss: float | None) -> None:
    if PartialState().is_main_process:
        write_run_report(folder, guessing_loss=guessing_loss)
        print(f"Look at {folder / REPORT_FILE}")


def _guessing_loss(settings: ContrastiveSettings, config: KoEnClipConfig) -> float | None:
    """Loss of a model that gives every pair of a batch the same score; none is known for the sigmoid loss.

    Rows of one group, which are not each other's negatives, make it a little less.
    """
    if config.loss_type != "softmax":
        return None
    languages = len(settings.languages) if settings.loading.every_language else 1
    return sum(config.direction_weights) * math.log(1 + languages * (settings.loading.global_batch_size - 1))
