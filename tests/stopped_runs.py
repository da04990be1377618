"""Runs that end before their last step, as a crash would end them."""

from contextlib import contextmanager

import pytest

import ko_en_clip.training.loop as loop


@contextmanager
def stopped_after(step: int):
    """Within it a run dies once the checkpoint of this step is written, and the death is expected."""
    original = loop.save_checkpoint

    def saving(accelerator, folder, progress, **given):
        original(accelerator, folder, progress, **given)
        if progress.step == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "save_checkpoint", saving)
        yield
