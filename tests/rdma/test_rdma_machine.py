"""The rdma transport, on a machine that has software RDMA devices: boots it, and runs there what is in inside/."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.tiny import make_tiny_model

FOLDER = Path(__file__).parent
TIMEOUT_S = 450
SOMETHING_IS_MISSING = 124
RUNS = 2


@pytest.mark.timeout(TIMEOUT_S + 60)
def test_all_that_is_in_inside_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = make_tiny_model(tmp_path)  # here, for torch is slow there
    ended = subprocess.run(
        [FOLDER / "softroce.sh", sys.executable, FOLDER / "inside/run.py"],
        cwd=FOLDER.parents[1],
        env={**os.environ, "TIMEOUT_S": str(TIMEOUT_S), "PASS_ENV": "MODEL", "MODEL": str(model)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S + 30,
    )
    if ended.returncode == SOMETHING_IS_MISSING:
        pytest.skip(ended.stdout.strip())
    with capsys.disabled():
        sys.stdout.write(f"\n{ended.stdout}")
    assert ended.returncode == 0
    assert len(re.findall(r"^\d+ passed in", ended.stdout, re.MULTILINE)) == RUNS, "some were skipped"
