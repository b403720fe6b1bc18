"""The held-out section's counts reach no number that is learned: scrambled, they leave the saved models as they are."""

from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse
from tests.models.conftest import make_section

from histoflow import models
from histoflow.bench import model_path, read_prediction, run
from histoflow.io import Cohort, Row
from histoflow.models import Calibrated

FLOW = models.STFlow(
    network=models.Network(hidden_dim=16, pairwise_dim=16, n_layers=2, n_heads=2, n_components=8),
    training=models.Training(max_epochs=2, crops_per_section=2, n_members=1),
)
CHOICE = models.Auto({"hest_fm": models.RidgeProbe(), "mean": models.MeanBaseline()}, level=0.9)
COMPARED = {"stflow": Calibrated(FLOW), "hest_fm": models.RidgeProbe(), "auto": CHOICE}
HELD_OUT = "S3"


def sections() -> list[AnnData]:
    return [make_section(f"S{i}", seed=i) for i in range(4)]


def scrambled(section: AnnData) -> AnnData:
    """Other counts at the same spots: more of them, in other genes."""
    changed = section.copy()
    rng = np.random.default_rng(0)
    changed.X = sparse.csr_matrix(rng.permuted(section.X.toarray(), axis=1) * 7 + rng.poisson(30, section.shape))
    return changed


def cohort(poisoned: str | None) -> Cohort:
    """Four sections, of which the last one is held out; the counts of one are scrambled."""
    rows = [
        Row(
            section=f"S{i}",
            kind="visium",
            slide=Path(f"{i}.tif"),
            role="held_out" if f"S{i}" == HELD_OUT else "reference",
        )
        for i in range(4)
    ]
    read = {f"S{i}": section for i, section in enumerate(sections())}
    if poisoned:
        read[poisoned] = scrambled(read[poisoned])
    return Cohort(rows, sections=read)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of the same evaluation: clean, the held-out section poisoned, a training section poisoned."""
    folders = [tmp_path_factory.mktemp("run") for _ in range(3)]
    for folder, poisoned in zip(folders, (None, HELD_OUT, "S0"), strict=True):
        table = run(cohort(poisoned), models=COMPARED, panel=4, out=folder)
        assert list(table["fold"].unique()) == [HELD_OUT]
        assert (table["error"] == "").all()
    return folders


@pytest.mark.parametrize("model", COMPARED)
def test_a_model_is_the_same_bit_for_bit(runs, model):
    clean, poisoned = (model_path(folder, fold=HELD_OUT, model=model) for folder in runs[:2])
    for name in ("weights.safetensors", "model.json"):
        assert (clean / name).read_bytes() == (poisoned / name).read_bytes()


@pytest.mark.parametrize("model", COMPARED)
def test_its_prediction_and_intervals_are_the_same(runs, model):
    clean, poisoned = (read_prediction(folder, fold=HELD_OUT, section=HELD_OUT, model=model) for folder in runs[:2])
    np.testing.assert_array_equal(clean.X, poisoned.X)
    learned = set(clean.layers) - {"measured"}
    assert ("upper" in learned) == (model != "hest_fm")
    for layer in learned:
        np.testing.assert_array_equal(clean.layers[layer], poisoned.layers[layer])
    assert not np.array_equal(clean.layers["measured"], poisoned.layers["measured"])


@pytest.mark.parametrize("model", COMPARED)
def test_the_poison_is_felt_where_it_is_trained_on(runs, model):
    clean, poisoned = (model_path(folder, fold=HELD_OUT, model=model) / "weights.safetensors" for folder in runs[::2])
    assert clean.read_bytes() != poisoned.read_bytes()
