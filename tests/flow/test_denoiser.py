"""Denoiser: the published size, an obvious reference with the same weights, symmetries, few spots, errors."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from histoflow._errors import OptionError, ShapeError
from histoflow.flow import Denoiser, EulerSampler, edge_geometry

N_FEATURES, N_GENES = 10, 6


def network(dtype=torch.float64, **sizes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = {"hidden_dim": 16, "pairwise_dim": 24, "n_layers": 3, "n_heads": 2}
        return Denoiser(N_FEATURES, N_GENES, **small | sizes).to(dtype).eval()


def inputs(n_spots, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(n_spots, N_FEATURES, generator=generator, dtype=torch.float64)
    return embedding.to(dtype), torch.rand(n_spots, N_GENES, generator=generator, dtype=torch.float64).to(dtype)


def estimate(net, xy, graph, embedding, x_t, t=0.3):
    context = net.context(embedding, edge_geometry(xy, *graph, dtype=embedding.dtype), *graph)
    return net(x_t, torch.tensor(t) if isinstance(t, float) else t, context)


def gated(mlp, x):
    a, b = (x @ mlp.fc1.weight.T + mlp.fc1.bias).chunk(2, dim=-1)
    return mlp.fc2(mlp.norm(a / (1 + torch.exp(-a)) * b))


def reference_edges(mlp, offset):
    """Edge embeddings of one spot: every frame of eigh, one after the other."""
    centred = offset - offset.mean(dim=0)
    _, axes = torch.linalg.eigh(centred.T @ centred)
    frames = [axes * torch.tensor(signs) for signs in itertools.product([-1.0, 1.0], repeat=2)]
    distance = offset.norm(dim=1, keepdim=True)
    return sum(gated(mlp, torch.cat([centred @ frame, distance], dim=1)) for frame in frames) / 4


def reference_attention(net, k, spot, near, edge, tokens, y):
    """Context of one spot in layer k: a full message for every neighbour and head."""
    layer, heads, width = net.layers[k], net.layers[k].n_heads, tokens.shape[1]
    query, key, value = layer.qkv(tokens).split(width, dim=1)
    values, edges = [], []
    for h in range(heads):
        own = slice(h * width // heads, (h + 1) * width // heads)
        own_edge = edge[:, h * edge.shape[1] // heads : (h + 1) * edge.shape[1] // heads]
        repeated = query[spot, own].expand(len(near), -1)
        message = torch.cat([repeated, key[near, own], own_edge, y[near] - y[spot]], dim=1)
        weight = torch.softmax(gated(layer.attention, message)[:, 0], dim=0)
        values.append(weight @ value[near, own])
        edges.append(weight @ own_edge)
    return torch.cat(values + edges)


def reference(net, xy, graph, embedding, x_t, t):
    """The published network, spot by spot."""
    near = [i[m] for i, m in zip(*graph, strict=True)]
    angle = torch.tensor([t * 10_000 ** (-j / 128) for j in range(128)], dtype=torch.float64)
    tokens, y = net.image(embedding) + net.time(torch.cat([angle.cos(), angle.sin()])), x_t
    estimates = []
    for k, layer in enumerate(net.layers):
        edges = [reference_edges(net.edges[k].mlp, xy[j] - xy[i]) for i, j in enumerate(near)]
        attended = [reference_attention(net, k, i, j, edges[i], tokens, y) for i, j in enumerate(near)]
        tokens = tokens + gated(layer.out, torch.stack(attended))
        tokens = tokens + gated(layer.feed_forward, tokens)
        y = layer.genes(tokens)
        estimates.append(y)
    return sum(estimates) / len(estimates)


def test_the_published_network_has_the_published_size():
    assert sum(p.numel() for p in Denoiser(1024, 50).parameters()) == 1_147_724


@pytest.mark.parametrize("t", [0.0, 0.37, 0.99])
@pytest.mark.parametrize("sizes", [{}, {"n_heads": 1, "pairwise_dim": 8}, {"hidden_dim": 8, "n_heads": 4}])
def test_estimate_equals_the_obvious_reference(places, connect, t, sizes):
    xy = places["jittered"][:20]
    graph, net, (embedding, x_t) = connect(xy), network(**sizes), inputs(20)
    ours = estimate(net, xy, graph, embedding, x_t, torch.tensor(t, dtype=torch.float64))
    torch.testing.assert_close(ours, reference(net, xy, graph, embedding, x_t, t), rtol=0, atol=1e-10)


@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_spots_in_another_order_are_estimates_in_another_order(places, connect, seed):
    xy, net, (embedding, x_t) = places["hexagonal"], network(), inputs(49)
    order = torch.randperm(49, generator=torch.Generator().manual_seed(seed))
    expected = estimate(net, xy, connect(xy), embedding, x_t)[order]
    found = estimate(net, xy[order], connect(xy[order]), embedding[order], x_t[order])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@given(angle=st.floats(-7, 7), mirror=st.booleans())
@settings(deadline=None, max_examples=10)
def test_rotation_mirror_and_shift_change_no_estimate(xy, connect, moved, angle, mirror):
    net, (embedding, x_t) = network(torch.float32), inputs(len(xy), torch.float32)
    there = moved(xy, angle, mirror)
    torch.testing.assert_close(
        estimate(net, there, connect(there), embedding, x_t),
        estimate(net, xy, connect(xy), embedding, x_t),
        rtol=0,
        atol=1e-4,
    )


def test_geometry_matters(places, connect):
    xy, net, (embedding, x_t) = places["jittered"], network(), inputs(49)
    graph = connect(xy)
    stretched = estimate(net, xy * torch.tensor([2.0, 1.0]), graph, embedding, x_t)
    assert (stretched - estimate(net, xy, graph, embedding, x_t)).abs().max() > 1e-3


def test_neighbours_expression_matters_but_a_common_shift_does_not(places, connect):
    xy, net, (embedding, x_t) = places["jittered"], network(), inputs(49)
    here = estimate(net, xy, connect(xy), embedding, x_t)
    torch.testing.assert_close(estimate(net, xy, connect(xy), embedding, x_t + 5), here, rtol=0, atol=1e-10)
    assert (estimate(net, xy, connect(xy), embedding, 2 * x_t) - here).abs().max() > 1e-4


def test_two_sections_stacked_are_as_if_apart(places, connect):
    first, second = places["jittered"], places["hexagonal"]
    net, (embedding, x_t) = network(), inputs(98)
    groups, t = [0] * 49 + [1] * 49, torch.tensor([0.2] * 49 + [0.8] * 49)[:, None]
    both = torch.cat([first, second])
    together = estimate(net, both, connect(both, groups), embedding, x_t, t)
    apart = [
        estimate(net, first, connect(first), embedding[:49], x_t[:49], 0.2),
        estimate(net, second, connect(second), embedding[49:], x_t[49:], 0.8),
    ]
    torch.testing.assert_close(together, torch.cat(apart), rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_estimate_and_gradients_are_finite_and_keep_the_dtype(xy, connect, dtype):
    net, (embedding, x_t) = network(dtype).train(), inputs(len(xy), dtype)
    found = estimate(net, xy, connect(xy), embedding, x_t)
    found.square().mean().backward()
    assert found.shape == x_t.shape
    assert found.dtype == dtype
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert found.isfinite().all()


def test_gradient_is_that_of_finite_differences(places, connect):
    xy, net, (embedding, x_t) = places["jittered"][:9], network(n_layers=2), inputs(9)
    graph = connect(xy)
    assert torch.autograd.gradcheck(
        lambda z, y: estimate(net, xy, graph, z, y), (embedding.requires_grad_(), x_t.requires_grad_()), fast_mode=True
    )


def test_a_large_section_in_blocks_is_the_same(places, connect, monkeypatch):
    xy, net, (embedding, x_t) = places["jittered"], network(), inputs(49)
    whole = estimate(net, xy, connect(xy), embedding, x_t)
    for module in ("attention", "edges"):
        monkeypatch.setattr(f"histoflow.flow.{module}._BLOCK_NUMBERS", 3000)
    torch.testing.assert_close(estimate(net, xy, connect(xy), embedding, x_t), whole, rtol=0, atol=1e-12)


def test_a_spot_without_neighbours_attends_to_nothing(places, connect):
    xy, net, (embedding, x_t) = places["jittered"][:20], network(), inputs(20)
    graph = connect(xy, groups=[0] * 19 + [1])
    found = estimate(net, xy, graph, embedding, x_t)
    torch.testing.assert_close(found, reference(net, xy, graph, embedding, x_t, 0.3), rtol=0, atol=1e-7)


def test_dropout_acts_in_training_only(places, connect):
    xy, net, (embedding, x_t) = places["jittered"], network(), inputs(49)
    quiet = estimate(net, xy, connect(xy), embedding, x_t)
    assert torch.equal(estimate(net, xy, connect(xy), embedding, x_t), quiet)
    net.train()
    assert not torch.allclose(estimate(net, xy, connect(xy), embedding, x_t), quiet)
    still = network(dropout=0.0, attention_dropout=0.0).train()
    torch.testing.assert_close(estimate(still, xy, connect(xy), embedding, x_t), quiet)


def test_each_layers_genes_are_dropped_with_the_right_probability_and_scale(places, connect):
    net = network(n_layers=1, dropout=0.25).train()
    layer, token = net.layers[0], torch.randn(4000, 16, dtype=torch.float64)
    dropped = layer.genes[-1](token)
    assert (dropped == 0).double().mean().item() == pytest.approx(0.25, abs=0.01)
    torch.testing.assert_close(dropped[dropped != 0], (token / 0.75)[dropped != 0])


def test_it_learns_under_the_sampler(places, connect):
    xy, net, (embedding, _) = places["jittered"], network().train(), inputs(49)
    graph, x1 = connect(xy), embedding[:, :N_GENES].tanh()
    geometry, optimizer = edge_geometry(xy, *graph, dtype=torch.float64), torch.optim.Adam(net.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(80):
            t, x0 = torch.rand((), generator=generator), torch.rand(49, N_GENES, generator=generator)
            loss = (net((1 - t) * x0 + t * x1, t, net.context(embedding, geometry, *graph)) - x1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()
    context = net.context(embedding, geometry, *graph)
    found = EulerSampler(3).sample(lambda x, t: net(x, t, context), torch.zeros_like(x1))
    assert (found - x1).square().mean() < 0.2 * x1.var()


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"n_heads": 3}, "hidden_dim is 16; give an even multiple of n_heads, which is 3"),
        ({"pairwise_dim": 7}, "pairwise_dim is 7; give an even multiple of n_heads, which is 2"),
        ({"n_layers": 0}, "n_layers is 0; give at least 1"),
        ({"dropout": 1.0}, r"dropout is 1\.0; give a probability"),
        ({"attention_dropout": -0.1}, r"attention_dropout is -0\.1; give a probability"),
    ],
)
def test_impossible_sizes_are_refused(sizes, text):
    with pytest.raises(OptionError, match=text):
        network(**sizes)


def test_input_of_other_shape_is_named(places, connect):
    xy, net, (embedding, x_t) = places["jittered"], network(), inputs(49)
    graph = connect(xy)
    with pytest.raises(ShapeError, match=r"embedding has shape \(49, 9\); this network takes \(n_spots, 10\)"):
        estimate(net, xy, graph, embedding[:, :9], x_t)
    with pytest.raises(ShapeError, match=r"index has shape \(49, \d+\), .* all must be \(48, K\)"):
        estimate(net, xy, graph, embedding[:48], x_t)
    with pytest.raises(ShapeError, match=r"x_t has shape \(49, 5\); this network and these spots take \(49, 6\)"):
        estimate(net, xy, graph, embedding, x_t[:, :5])
    with pytest.raises(ShapeError, match=r"t must have shape \(\) or \(49, 1\), got \(49,\)"):
        estimate(net, xy, graph, embedding, x_t, torch.zeros(49))


def test_the_sinusoids_are_not_rescaled(places, connect):
    xy, net, (embedding, x_t) = places["jittered"], network(), inputs(49)
    seen = []
    net.time.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    estimate(net, xy, connect(xy), embedding, x_t, 0.5)
    assert seen[0].shape == (1, 256)
    assert seen[0][0, 0].item() == pytest.approx(0.8775825619)
    assert seen[0][0, 128 + 64].item() == pytest.approx(0.0049999792)


def test_several_draws_at_once_are_as_if_drawn_apart(places, connect):
    xy, net, (embedding, x_t) = places["jittered"], network(), inputs(49)
    graph, starts = connect(xy), torch.stack([x_t, 2 * x_t, x_t.flip(0)])
    with torch.no_grad():
        apart = torch.stack([estimate(net, xy, graph, embedding, start) for start in starts])
        torch.testing.assert_close(estimate(net, xy, graph, embedding, starts), apart, rtol=0, atol=1e-12)


@pytest.mark.parametrize("held", [0, 1 << 26])
def test_a_section_cut_in_many_blocks_is_the_same_without_a_gradient(places, connect, monkeypatch, held):
    xy, net, (embedding, x_t) = places["jittered"], network(), inputs(49)
    whole = estimate(net, xy, connect(xy), embedding, x_t)
    monkeypatch.setattr("histoflow.flow.denoiser._ROWS", 5)
    monkeypatch.setattr("histoflow.flow.denoiser._HELD_NUMBERS", held)
    with torch.no_grad():
        context = net.context(embedding, edge_geometry(xy, *connect(xy), dtype=torch.float64), *connect(xy))
        assert (context.edges is None) == (held == 0)
        for x in (x_t, x_t[None]):
            torch.testing.assert_close(net(x, torch.tensor(0.3), context).view(49, -1), whole, rtol=0, atol=1e-12)


def test_bfloat16_products_give_nearly_the_same_estimate_in_float32(places, connect):
    xy, net, (embedding, x_t) = places["jittered"], network(torch.float32), inputs(49, torch.float32)
    exact = estimate(net, xy, connect(xy), embedding, x_t)
    with torch.autocast("cpu", torch.bfloat16):
        found = estimate(net, xy, connect(xy), embedding, x_t)
    assert found.dtype == torch.float32
    assert 0 < (found - exact).square().mean().sqrt() < 0.04 * exact.std()
