"""The tutorial runs, cell by cell, on real sections; with a quick encoder and few epochs its figures mean nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.quick_encoder import quick_scatter

import histoflow as hf
from histoflow.models import Training
from histoflow.models.recipes import RECIPES
from histoflow.pp.encoders import registry

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorials" / "stflow.py"
QUICK = {
    "N_EPOCHS, HIDDEN_DIM = 80, 256": "N_EPOCHS, HIDDEN_DIM = 2, 16",
    "Training(max_epochs=N_EPOCHS)": "Training(max_epochs=N_EPOCHS, crops_per_section=1, n_members=1, n_searches=1)",
    '"model").predict(adata_s2)': '"model").predict(adata_s2, n_samples=2)',
}


@pytest.fixture
def quick(monkeypatch):
    """What the text leaves at its default, made small: the encoder, members, searches, crops and draws."""
    training = Training(crops_per_section=1, n_members=1, n_searches=1)
    network = replace(RECIPES["default"].network, hidden_dim=16)
    monkeypatch.setitem(RECIPES, "default", replace(RECIPES["default"], network=network, training=training))
    monkeypatch.setitem(registry._BUILT_IN, "scatter", quick_scatter)
    draws = hf.predict_expression.__kwdefaults__ | {"n_samples": 2}
    monkeypatch.setattr(hf.predict_expression, "__kwdefaults__", draws)


@pytest.mark.data
@pytest.mark.filterwarnings("ignore")
def test_the_tutorial_runs_to_its_end(quick, data_folder, tmp_path, monkeypatch, capsys):
    source = TUTORIAL.read_text()
    for default, quick_text in QUICK.items():
        assert source.count(default) == 1
        source = source.replace(default, quick_text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HISTOFLOW_DATA", str(data_folder))
    monkeypatch.setenv("HISTOFLOW_CACHE", str(tmp_path / "cache"))  # its encoder bears the name of the real one
    exec(compile(source, str(TUTORIAL), "exec"), {"__name__": "__main__"})
    said = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines() if ":" in line)
    assert "feature table: ['scatter_tiles']" in said["tiles"]
    assert said["metadata    "].strip() == str(
        {"method": "stflow", "fm_backbone": "scatter", "n_epochs": 2, "n_layers": 4, "n_sample_steps": 5}
    )
    assert said["scale       "].strip() == "log1p of counts per 10,000"
    assert "spots paired" in said["C3-scatter"]
    assert {f"{section}-{kind}.png" for section in ("C2", "C3") for kind in ("predicted", "measured", "scatter")} <= {
        path.name for path in (tmp_path / "tutorial").iterdir() if path.stat().st_size > 10_000
    }
