"""Whatever the encoder, the way is the same: fit on a reference and predict a slide, with weights from a local file."""

import pytest
import torch
from safetensors.torch import save_file
from tests.pp.test_timm_models import random_model
from tests.pp.test_zoo import exported
from tests.test_workflow import PANEL, tiny_cohort

import histoflow as hf
from histoflow import io, workflow
from histoflow._errors import TrainingWarning, WeightsError
from histoflow._keys import UNS
from histoflow.pp import Encoder, get_encoder

GENES = list(PANEL.genes)

pytestmark = pytest.mark.filterwarnings(
    "ignore::histoflow._errors.TrainingWarning", "ignore::histoflow._errors.ScaleWarning"
)


@pytest.fixture(scope="module")
def shared(cache_folder):
    return io.read_cohort(tiny_cohort(cache_folder))


@pytest.fixture
def reference(shared):
    return shared.select(sections=["P1_A"])[0].copy()


@pytest.fixture
def wsi(shared):
    return hf.tile(io.open_wsi(shared.queries[0].slide), tile_px=448, mpp=0.5)


def timm_checkpoint(name: str, folder):
    path = folder / f"{name}.safetensors"
    save_file(random_model(name, num_classes=0).state_dict(), path)
    return path


def mean_colours(images: torch.Tensor) -> torch.Tensor:
    return torch.cat([images.mean((2, 3)), images.amin((2, 3))], dim=1)


CASES = {
    "timm vit": lambda folder: ("timm:test_vit", timm_checkpoint("test_vit", folder), 64),
    "timm resnet": lambda folder: ("timm:test_resnet", timm_checkpoint("test_resnet", folder), 96),
    "registry": lambda folder: ("ctranspath", exported(folder / "CTransPath_exported.pt2"), 6),
    "callable": lambda folder: (Encoder.from_callable(mean_colours, name="means", patch_px=32), None, 6),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """Encoder, weights and width, the same for every method, so that tiles and spots are embedded once."""
    return CASES[request.param](tmp_path_factory.mktemp("weights"))


@pytest.mark.parametrize("method", ["hest_fm", "stflow"])
def test_every_encoder_goes_through_fit_and_predict(wsi, reference, small_flow, case, method):
    encoder, weights, width = case
    quick = {"n_epochs": 1, "hidden_dim": 8, "n_layers": 1, "n_samples": 2}
    predicted = hf.predict_expression(
        wsi, method=method, reference=reference, fm_backbone=encoder, fm_weight_path=weights, genes=GENES, **quick
    )
    made = predicted.uns[UNS]["embedding"]
    assert predicted.shape == (len(wsi.shapes["tiles"]), len(GENES))
    assert made["n_features"] == width
    assert made["licence"]
    assert made["weights_hash"] != "none" or weights is None
    # Two fields of view, at the place and within four radii.
    assert wsi.tables[f"{made['name']}_tiles"].n_vars == 2 * width * 5


def test_a_model_in_half_precision_embeds_what_it_predicts_alike(shared, reference, tmp_path):
    weights = timm_checkpoint("test_vit", tmp_path)
    model = hf.fit(
        reference, model="hest_fm", encoder=get_encoder("timm:test_vit", weights=weights, amp=True), panel=PANEL
    )
    assert model.embedding_["amp"] is True
    predicted = workflow.predict_section(model, shared.select(sections=["P2_B"])[0].copy(), weights=weights)
    assert predicted.uns[UNS]["embedding"]["id"] == model.embedding_["id"]


def test_weights_that_nobody_has_are_asked_for(wsi, reference, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="uni2"):
        hf.predict_expression(wsi, reference=reference, fm_backbone="uni2", genes=GENES)


def test_the_cache_folder_that_is_given_is_the_only_one_written_to(shared, tmp_path, monkeypatch):
    elsewhere = {name: tmp_path / name for name in ("HISTOFLOW_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME")}
    for name, folder in elsewhere.items():
        monkeypatch.setenv(name, str(folder))
    row = next(row for row in shared.rows if row.section == "P1_B")
    section = hf.read_st(row.counts, row.spots, row.slide, cache_dir=tmp_path / "given")
    wsi = hf.tile(hf.open_wsi(row.slide, mpp=1.1, cache_dir=tmp_path / "given"), tile_px=448, mpp=0.5)
    with pytest.warns(TrainingWarning):
        hf.predict_expression(
            wsi,
            method="hest_fm",
            reference=section,
            fm_backbone="timm:test_vit",
            fm_weight_path=timm_checkpoint("test_vit", tmp_path),
            genes=GENES,
            cache_dir=tmp_path / "given",
        )
    assert {path.name for path in (tmp_path / "given").iterdir()} >= {"features", "slides"}
    assert not [folder for folder in elsewhere.values() if folder.exists()]
