"""`ko-en-clip distill`: a text tower taught by another model's, judged on held-out data as it goes, with a report."""

from functools import partial

from ..training.distillation import distill
from ..training.settings import DistillationSettings
from .train import held_out_evaluation, run_with_report


def run(settings: DistillationSettings) -> None:
    """Teach, and write the model and `report.html` into `run.output_dir`."""
    run_with_report(partial(distill, evaluate=held_out_evaluation(settings)), settings)
