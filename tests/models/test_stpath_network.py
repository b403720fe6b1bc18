"""STPath's forward: equal to LazySlide's on random weights of the published shapes, whatever the size of a block."""

import numpy as np
import pytest
import torch
from scipy import sparse
from tests import einops_stub  # noqa: F401  LazySlide's model needs einops
from tests.models.stpath_files import SMALL, TRUE, random_state

from histoflow._errors import WeightsError
from histoflow.models import stpath_network
from histoflow.models.stpath_network import Context, network_of, rescaled

ORGAN, TECH = 5, 2


def spots(n_spots: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_spots, 1536)).astype(np.float32), rng.uniform(500, 9000, (n_spots, 2))


def ours(state, features, xy_um, context=None) -> np.ndarray:
    network = network_of(state, "weights")
    with torch.inference_mode():
        return network.expression(network.encode(features, rescaled(xy_um), ORGAN, TECH, context))


def lazyslides(state, sizes, features, xy_um, tokens=None) -> np.ndarray:
    """The forward that LazySlide ships, which holds all pairs of spots at once."""
    from lazyslide_models.feature_prediction.stpath._model import STFM, rescale_coords

    n, n_tokens = len(features), state["gene_exp_head.1.weight"].shape[0]
    cfg = {"d_model": sizes["hidden_dim"], "n_layers": sizes["n_layers"], "n_heads": sizes["n_heads"]}
    network = STFM(n_genes=n_tokens, n_tech=5, n_organs=25, cfg=cfg)
    network.load_state_dict(state)
    with torch.inference_mode():
        return network.eval()(
            torch.from_numpy(features),
            rescale_coords(torch.from_numpy(xy_um).float()),
            torch.zeros(n, dtype=torch.long),
            torch.full((n,), TECH),
            torch.full((n,), ORGAN),
            tokens,
        ).numpy()


def test_equal_to_lazyslides_forward_at_the_published_shapes():
    state = random_state(38_984, **TRUE)
    assert sum(value.numel() for value in state.values()) == pytest.approx(49.2e6, rel=0.01)
    features, xy_um = spots(150)
    predicted = ours(state, features, xy_um)
    assert predicted.std(axis=0).mean() > 0.1
    np.testing.assert_allclose(predicted, lazyslides(state, TRUE, features, xy_um), atol=1e-5)


@pytest.mark.parametrize("n_spots", [1, 2, 60])
def test_equal_to_lazyslides_forward_with_spots_of_known_expression(n_spots):
    state = random_state(40, **SMALL)
    features, xy_um = spots(n_spots)
    rows = np.arange(0, n_spots, 7)[::-1].copy()
    log1p = np.log1p(np.random.default_rng(1).poisson(0.5, (len(rows), 40))).astype(np.float32)
    tokens = torch.zeros(n_spots, 40)
    tokens[:, 1] = 1.0
    tokens[rows] = torch.from_numpy(log1p)
    predicted = ours(state, features, xy_um, Context(rows, sparse.csr_matrix(log1p)))
    np.testing.assert_allclose(predicted, lazyslides(state, SMALL, features, xy_um, tokens), atol=1e-5)
    assert np.abs(predicted - ours(state, features, xy_um)).max() > 0.01


@pytest.mark.parametrize("most", [1, 4 * 60 * 7, 4 * 60 * 60])
def test_blocks_of_queries_change_nothing(monkeypatch, most):
    state = random_state(40, **SMALL)
    features, xy_um = spots(60)
    whole = ours(state, features, xy_um)
    monkeypatch.setattr(stpath_network, "_MOST_LOGITS", most)
    np.testing.assert_allclose(ours(state, features, xy_um), whole, atol=1e-6)


def test_only_the_distance_column_of_the_bias_matters():
    state = random_state(40, **SMALL)
    features, xy_um = spots(30)
    first = ours(state, features, xy_um)
    for block in range(SMALL["n_layers"]):
        state[f"model.blks.{block}.attn.edge_bias.0.weight"][:, :2] = 7.0
    np.testing.assert_array_equal(ours(state, features, xy_um), first)
    np.testing.assert_allclose(lazyslides(state, SMALL, features, xy_um), first, atol=1e-4)
    state["model.blks.0.attn.edge_bias.0.weight"][:, 2] *= -1
    assert np.abs(ours(state, features, xy_um) - first).max() > 0.01


def test_places_fill_their_own_range_along_each_axis():
    xy_um = np.array([[10.0, 500.0], [20.0, 900.0], [40.0, 600.0]])
    np.testing.assert_allclose(rescaled(xy_um), [[0, 0], [100 / 3, 100], [100, 25]], rtol=1e-6)
    np.testing.assert_allclose(rescaled(xy_um * [3, 0.2] + 8), rescaled(xy_um), rtol=1e-5)
    np.testing.assert_array_equal(rescaled(np.array([[7.0, 1.0], [7.0, 3.0]])), [[0, 0], [0, 100]])


def test_a_mapped_file_of_features_is_not_written_to():
    state = random_state(40, **SMALL)
    features, xy_um = spots(9)
    before = features.copy()
    features.flags.writeable = False
    np.testing.assert_array_equal(ours(state, features, xy_um), ours(state, before, xy_um))


def test_half_precision_weights_are_run_in_single():
    state = {name: value.half() for name, value in random_state(40, **SMALL).items()}
    features, xy_um = spots(9)
    single = {name: value.float() for name, value in state.items()}
    np.testing.assert_array_equal(ours(state, features, xy_um), ours(single, features, xy_um))


def test_weights_of_another_network_are_refused():
    state = random_state(40, **SMALL)
    with pytest.raises(WeightsError, match=r"W are not those of STPath .*image_embed"):
        network_of({"head.weight": torch.zeros(3, 3)}, "W")
    narrow = state | {"input_encoder.image_embed.weight": torch.zeros(32, 1024)}
    with pytest.raises(WeightsError, match="W take 1024 numbers of a spot, but GigaPath makes 1536"):
        network_of(narrow, "W")
    with pytest.raises(WeightsError, match=r"W do not fit the network .*organ_embed"):
        network_of(state | {"input_encoder.organ_embed.weight": torch.zeros(24, 32)}, "W")
    more = state | {"decoder.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"W do not fit the network .*decoder\.weight"):
        network_of(more, "W")
