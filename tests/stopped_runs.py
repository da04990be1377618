"""Runs that end after a step, to be resumed: what tests of several stages share."""

from typing import Any

import pytest

import ko_en_clip.training.loop as loop


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the next run in this process end with KeyboardInterrupt once the checkpoint of this step is whole.

    The step has to be one at which the run saves. Runs after that one are as usual.

    Example:
        stop_after(monkeypatch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(settings)
        train(with_run(settings, resume=True))
    """
    original = loop.save_checkpoint

    def save_and_stop(accelerator: Any, folder: Any, progress: Any, **rest: Any) -> None:
        original(accelerator, folder, progress, **rest)
        if progress.step == step:
            monkeypatch.setattr(loop, "save_checkpoint", original)
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", save_and_stop)
