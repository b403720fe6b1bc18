"""Compiled passes beside what torch does in their place, with the same choice of dropout; threads; the exponential."""

import numpy as np
import pytest
import torch
from tests.flow.test_attention import CHANCE, MODULES, inputs, near

from histoflow.flow import edge_geometry
from histoflow.flow.attention import Inputs, attend
from histoflow.flow.compiled import in_parts
from histoflow.flow.edges import EdgeEmbedding
from histoflow.flow.gated import GatedMLP

rows = pytest.importorskip("histoflow.flow.rows", reason="needs numba", exc_type=ImportError)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_compiled_passes_and_torch_agree_under_dropout(dtype, within, places, connect, monkeypatch):
    given, graph, chance = Inputs(*(one.detach().to(dtype).requires_grad_() for one in inputs())), near(), CHANCE
    xy, mlp = places["jittered"], GatedMLP(4, 8, 3, 0.3).to(dtype)
    geometry, embed = edge_geometry(xy, *connect(xy), dtype=dtype), EdgeEmbedding(16, 0.3).to(dtype)
    weights = [*given, *embed.parameters(), *mlp.parameters()]
    told = []
    for without in (False, True):
        if without:
            for module in MODULES:
                monkeypatch.setattr(f"histoflow.flow.{module}.compiled", lambda x: False)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            found = attend(given, graph, chance), embed(*geometry), mlp(torch.ones(7, 4, dtype=dtype).cumsum(dim=0))
        there = sum((one * torch.linspace(-1, 1, one.numel(), dtype=dtype).view(one.shape)).sum() for one in found)
        told.append([*found, *torch.autograd.grad(there, weights)])
    for compiled, plain in zip(*told, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=within, atol=within * plain.detach().abs().max().item())


def test_the_exponential_of_vectors_is_that_of_the_library():
    x = np.linspace(-86, 86, 4001, dtype=np.float32)
    found = np.array([rows._exp_single(one) for one in x], dtype=np.float64)
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)), rtol=2e-7)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_parts_cover_a_range_once(n_threads, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: n_threads)
    done = []
    in_parts(done.append, 8)
    assert [item for start, stop in sorted(done) for item in range(start, stop)] == list(range(8))
    assert len(done) == n_threads


def test_results_do_not_depend_on_threads(monkeypatch):
    given, found = inputs(), []
    for n_threads in (1, 2):
        monkeypatch.setattr("torch.get_num_threads", lambda n=n_threads: n)
        attended = attend(given, near(), CHANCE)
        found.append([attended, *torch.autograd.grad(attended.square().sum(), given)])
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)
