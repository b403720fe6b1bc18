"""An estimator inside LazySlide: its numbers are those of `predict`, and other tiles are refused."""

import lazyslide
import numpy as np
import pytest
from tests.models.conftest import make_section
from tests.test_workflow import PANEL, tiny_cohort

import histoflow as hf
from histoflow import io, models, workflow
from histoflow._errors import EncoderMismatchError, NotFittedError, OptionError, ShapeError
from histoflow._keys import UNS

pytestmark = pytest.mark.filterwarnings("ignore::histoflow._errors.TrainingWarning")


@pytest.fixture(scope="module")
def fitted(cache_folder):
    cohort = io.read_cohort(tiny_cohort(cache_folder))
    small = models.Network(hidden_dim=16, pairwise_dim=16, n_layers=1, n_heads=1, n_components=4)
    flow = models.STFlow(encoder="color", network=small, training=models.Training(max_epochs=1, n_searches=0))
    reference = workflow.embed(cohort.select(sections=["P1_A"])[0].copy(), "color")
    return cohort, flow.fit([reference], panel=PANEL)


def test_lazyslide_gets_the_numbers_of_predict(fitted):
    cohort, model = fitted
    wsi = hf.tile(io.open_wsi(cohort.queries[0].slide))
    wsi.shapes["tiles"] = wsi.shapes["tiles"].assign(tissue_id=0)
    make = workflow.embedder("color", made=model.embedding_)
    expected = model.predict(make.laid_tiles(wsi))
    known = wsi.attrs[UNS]
    width = wsi.shapes["tiles"].geometry.bounds.eval("maxx - minx").iloc[0]
    wrapped = models.as_lazyslide_model(model, mpp=(known["mpp_x"], known["mpp_y"]), tile_px=width)
    lazyslide.tl.feature_prediction(wsi, wrapped, "color", key_added="plugged", pbar=False, device="cpu")
    plugged = wsi.tables["plugged"]
    assert list(plugged.var_names) == list(PANEL.genes)
    np.testing.assert_allclose(plugged.X, expected.X, atol=1e-5)


def test_tiles_of_another_size_are_refused(fitted):
    _, model = fitted
    with pytest.raises(
        EncoderMismatchError, match=r"tiles of 224 pixels are 56\.0 µm wide, the patches of the model 112"
    ):
        models.as_lazyslide_model(model, mpp=0.25, tile_px=224)
    models.as_lazyslide_model(model, mpp=0.5, tile_px=224)


def test_calls_that_mean_nothing(fitted):
    _, model = fitted
    with pytest.raises(NotFittedError):
        models.as_lazyslide_model(model.clone(), mpp=0.5, tile_px=224)
    with pytest.raises(OptionError, match="give both above 0"):
        models.as_lazyslide_model(model, mpp=0, tile_px=224)
    blind = models.MeanBaseline().fit([make_section("S", 0)], panel=["G0", "G1"])
    with pytest.raises(OptionError, match="looks at no image"):
        models.as_lazyslide_model(blind, mpp=0.5, tile_px=224)
    wrapped = models.as_lazyslide_model(model, mpp=0.5, tile_px=224)
    features = np.zeros((3, 30), np.float32)
    with pytest.raises(ShapeError, match="needs the places"):
        wrapped.predict(features)
    with pytest.raises(ShapeError, match=r"coords must have shape \(3, 2\)"):
        wrapped.predict(features, np.zeros((2, 2)))
