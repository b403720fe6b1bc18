"""The tutorial runs, cell by cell, on real sections; with a quick encoder and few epochs its figures mean nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorials" / "stflow.py"
QUICK = {
    'FM_BACKBONE = "scatter"': 'FM_BACKBONE = "color"',
    "N_EPOCHS, HIDDEN_DIM = 80, 256": "N_EPOCHS, HIDDEN_DIM = 2, 32",
}


@pytest.mark.data
def test_the_tutorial_runs_to_its_end(data_folder, tmp_path):
    source = TUTORIAL.read_text()
    for default, quick in QUICK.items():
        assert source.count(default) == 1
        source = source.replace(default, quick)
    environment = os.environ | {"HISTOFLOW_DATA": str(data_folder), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    assert "feature table: ['color_tiles']" in said["tiles"]
    assert said["metadata    "].strip() == str(
        {"method": "stflow", "fm_backbone": "color", "n_epochs": 2, "n_layers": 4, "n_sample_steps": 5}
    )
    assert said["scale       "].strip() == "log1p of counts per 10,000"
    assert "spots paired" in said["C3-scatter"]
    assert {f"{section}-{kind}.png" for section in ("C2", "C3") for kind in ("predicted", "measured", "scatter")} <= {
        path.name for path in (tmp_path / "tutorial").iterdir() if path.stat().st_size > 10_000
    }
