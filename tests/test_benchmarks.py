"""The benchmarks run; what they measure is no matter of a test."""

import re
import subprocess
import sys
from pathlib import Path

from training_texts import TRAINING_TEXTS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_text_padding_prints_a_ratio_for_every_variant(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("\n".join(TRAINING_TEXTS), encoding="utf-8")
    command = [sys.executable, str(BENCHMARKS / "text_padding.py"), "captions.txt", "--batch_size=2", "--rounds=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if "share" in line]
    assert len(lines) == 3
    for line in lines:
        assert [float(ratio) > 0 for ratio in re.findall(r" (\d+\.\d+)(?:,|$)", line)[-3:]] == [True] * 3
