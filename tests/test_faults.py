"""Ten of the points of `make faults`: a fault in a running command, and the next run is as if nothing had been."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
N_POINTS, SEED = 10, 7
CHEAP = "predict,download"


@pytest.mark.skipif(not (sys.platform == "linux" and shutil.which("cc")), reason="needs Linux and a C compiler")
def test_after_a_fault_the_next_run_is_as_if_nothing_had_been(tmp_path):
    told = tmp_path / "faults.json"
    command = [sys.executable, "-m", "faults", "--points", str(N_POINTS), "--seed", str(SEED), "--out", str(told)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*command, "--only", CHEAP], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(told.read_text())
    assert found["wrong"] == []
    assert sum(row["points"] for row in found["summary"]) == N_POINTS
    assert len({row["fault"] for row in found["summary"]}) > 3
    assert [path.name for path in tmp_path.iterdir()] == [told.name]
