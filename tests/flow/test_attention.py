"""Attention and embedded edges in blocks: plain autograd as oracle, finite differences, dropout, subsets of spots."""

import pytest
import torch
from torch.nn.functional import layer_norm, silu

from histoflow.flow import edge_geometry
from histoflow.flow.attention import Chance, Inputs, Neighborhood, attend, by_head, edges_in_first_layer
from histoflow.flow.edges import EdgeEmbedding
from histoflow.flow.gated import GatedMLP

N_SPOTS, N_NEAR, N_HEADS, WIDTH, HIDDEN, PAIRWISE = 9, 3, 2, 8, 6, 4
EPSILON = 1e-5
QUIET, CHANCE = Chance(0.0, 0.0, EPSILON, 0), Chance(0.3, 0.2, EPSILON, 5)
MODULES = ("attention", "dropout", "edges", "gated")


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def way(request, monkeypatch):
    """Compiled loops, then what does their work on other devices."""
    for module in MODULES if request.param == "torch" else ():
        monkeypatch.setattr(f"histoflow.flow.{module}.compiled", lambda x: False)


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [
        (N_SPOTS, N_HEADS * WIDTH),
        (N_SPOTS, N_HEADS * WIDTH),
        (N_SPOTS, HIDDEN),
        (N_SPOTS, N_NEAR, PAIRWISE),
        (WIDTH, PAIRWISE // N_HEADS),
        (WIDTH // 2,),
        (1,),
    ]
    made = (torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes)
    return Inputs(*made)


def near():
    index = torch.randint(N_SPOTS, (N_SPOTS, N_NEAR), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(N_SPOTS, N_NEAR, dtype=torch.bool)
    mask[2, 1:], mask[5] = False, False
    return Neighborhood(index, mask)


def plain(given, graph):
    """The same without blocks, norm and last layer one after the other."""
    edge = given.edge.reshape(*graph.index.shape, N_HEADS, -1)
    packed = (given.receiver[:, None] + given.sender[graph.index]).reshape(*graph.index.shape, N_HEADS, WIDTH)
    gate, value = (packed + edge @ given.to_edge.T).chunk(2, dim=-1)
    logits = layer_norm(silu(gate) * value, (WIDTH // 2,), eps=EPSILON) @ given.weight + given.bias
    weight = logits.masked_fill(~graph.mask[..., None], -1e300).softmax(dim=1) * graph.mask[..., None]
    parts = given.value[graph.index].reshape(*graph.index.shape, N_HEADS, -1), edge
    return torch.cat([(weight[..., None] * part).sum(dim=1).flatten(1) for part in parts], dim=1)


@pytest.mark.parametrize("numbers", [1, 100, 1 << 19])
def test_result_and_gradients_are_those_of_plain_autograd(numbers, monkeypatch):
    monkeypatch.setattr("histoflow.flow.attention._BLOCK_NUMBERS", numbers)
    given, graph = inputs(), near()
    found, expected = attend(given, graph, QUIET), plain(given, graph)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    there = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = (torch.autograd.grad((one * there).sum(), given) for one in (found, expected))
    for name, ours, theirs in zip(Inputs._fields, *gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11, msg=name)


@pytest.mark.parametrize("chance", [QUIET, CHANCE])
def test_gradients_are_those_of_finite_differences(chance):
    # With dropout, too: the key chooses alike at every evaluation.
    assert torch.autograd.gradcheck(lambda *given: attend(Inputs(*given), near(), chance), tuple(inputs()))


def test_spots_that_attend_may_be_a_part_of_those_attended_to():
    given, graph, rows = inputs(), near(), slice(3, 7)
    part = given._replace(receiver=given.receiver[rows], edge=given.edge[rows])
    known = edges_in_first_layer(part.edge, given.to_edge)
    expected = attend(given, graph, QUIET)[rows]
    for edge_part in (None, known):
        found = attend(part, Neighborhood(graph.index[rows], graph.mask[rows]), QUIET, edge_part)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_weights_are_dropped_with_their_probability_and_scale():
    # One neighbour: its weight is 1, or 0 and 1 / (1 - rate) with dropout.
    n_spots = 4000
    given = Inputs(*(torch.ones(shape) for shape in [(n_spots, 8), (n_spots, 8), (n_spots, 1)]),
                   torch.ones(n_spots, 1, 1), torch.ones(8, 1), torch.ones(4), torch.ones(1))  # fmt: skip
    graph = Neighborhood(torch.arange(n_spots)[:, None], torch.ones(n_spots, 1, dtype=torch.bool))
    found = attend(given, graph, Chance(0.2, 0.25, EPSILON, 5))[:, 0]
    assert (found == 0).double().mean().item() == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(found[found != 0], torch.full_like(found[found != 0], 1 / 0.75))


def test_edges_are_the_mean_of_a_gated_network_over_frames(places, connect):
    xy = places["jittered"][:20]
    geometry, embed = edge_geometry(xy, *connect(xy), dtype=torch.float64), EdgeEmbedding(8, 0.2).double().eval()
    torch.testing.assert_close(embed(*geometry), embed.mlp(geometry.frames()).mean(dim=2), rtol=0, atol=1e-12)


def test_gradients_of_embedded_edges_under_dropout_are_those_of_finite_differences(places, connect, monkeypatch):
    monkeypatch.setattr("histoflow.flow.edges._BLOCK_NUMBERS", 400)
    monkeypatch.setattr("histoflow.flow.dropout.Dropout.new_key", lambda self: 3)
    xy = places["jittered"][:9]
    geometry, embed = edge_geometry(xy, *connect(xy), dtype=torch.float64), EdgeEmbedding(4, 0.3).double()
    names, weights = zip(*embed.named_parameters(), strict=True)

    def embedded(*given):
        return torch.func.functional_call(embed, dict(zip(names, given, strict=True)), tuple(geometry))

    assert torch.autograd.gradcheck(embedded, weights)


def test_embedded_edges_under_dropout_scatter_as_frames_of_a_gated_network_do(places, connect):
    # The mean and the spread over many draws of the dropout, beside those of the network applied to every frame: its
    # result is dropped for every frame before the mean there, so ours, which drops shares of the mean, scatters less.
    xy = places["jittered"][:9]
    geometry = edge_geometry(xy, *connect(xy), dtype=torch.float64)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        embed = EdgeEmbedding(8, 0.3).double()
        ours = torch.stack([embed(*geometry) for _ in range(800)])
        theirs = torch.stack([embed.mlp(geometry.frames()).mean(dim=2) for _ in range(800)])
    spread = theirs.std(dim=0).mean()
    assert (ours.mean(dim=0) - theirs.mean(dim=0)).abs().mean() < 0.1 * spread
    assert 0.75 < ours.std(dim=0).mean() / spread < 1


def test_the_read_out_takes_in_scale_and_shift_of_the_norm():
    mlp, x = GatedMLP(3, 8, 2, 0.0).double(), torch.randn(5, 4, dtype=torch.float64)
    torch.nn.init.normal_(mlp.norm.weight)
    torch.nn.init.normal_(mlp.norm.bias)
    weight, bias = mlp.read_out()
    expected = mlp.fc2(mlp.norm(x))
    torch.testing.assert_close(layer_norm(x, (4,), eps=mlp.norm.eps) @ weight.T + bias, expected)


def test_where_no_spot_attends_there_is_nothing():
    given, graph = inputs(), near()
    nobody = Neighborhood(graph.index[:0], graph.mask[:0])
    none = attend(given._replace(receiver=given.receiver[:0], edge=given.edge[:0]), nobody, QUIET)
    assert none.shape == (0, HIDDEN + PAIRWISE)
    none.sum().backward()
    assert not given.value.grad.any()


def test_what_heads_share_is_added_and_its_gradient_summed_over_them():
    x, shared = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((10, 8), (5, 8)))
    for sign in (1, -1):
        assert torch.autograd.gradcheck(lambda x, shared, sign=sign: by_head(x * 1, shared, sign), (x, shared))
        exact = (torch.arange(80.0).reshape(10, 8) % 7).bfloat16()
        halved = torch.zeros(5, 8, dtype=torch.bfloat16, requires_grad=True)
        by_head(exact * 1, halved, sign).backward(exact.view(5, 16))
        torch.testing.assert_close(halved.grad, exact.view(5, 2, 8).sum(dim=1) * sign, rtol=0, atol=0)
