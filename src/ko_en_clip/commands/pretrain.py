"""`ko-en-clip pretrain`: masked pre-training of the vision tower, with a report at the end."""

from ..training.mae import pretrain_mae
from ..training.settings import StageSettings
from .train import run_with_report


def run(settings: StageSettings) -> None:
    """Pre-train, and write the model and `report.html` into `run.output_dir`.

    Raises:
        ValueError: `run.eval_suites` names a suite; they ask about texts, of which nothing is learned here.
    """
    if settings.run.eval_suites:
        raise ValueError(
            f"run.eval_suites is {settings.run.eval_suites}, and pretrain trains no text tower to judge by them; "
            "leave it empty, and name them for train."
        )
    run_with_report(pretrain_mae, settings)
