"""Compiled passes beside what torch does in their place, with the same choice of dropout; threads; the exponential."""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.flow.test_attention import CHANCE, MODULES, QUIET, inputs, near

from histoflow.flow import edge_geometry, kernels, rows
from histoflow.flow.attention import Inputs, attend, edges_in_first_layer
from histoflow.flow.compiled import empty, in_parts
from histoflow.flow.dropout import Choice
from histoflow.flow.edges import EdgeEmbedding
from histoflow.flow.gated import GatedMLP


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_compiled_passes_and_torch_agree_under_dropout(dtype, within, places, connect, monkeypatch):
    given, graph, chance = Inputs(*(one.detach().to(dtype).requires_grad_() for one in inputs())), near(), CHANCE
    xy, mlp = places["jittered"], GatedMLP(4, 8, 3, 0.3).to(dtype)
    geometry, embed = edge_geometry(xy, *connect(xy), dtype=dtype), EdgeEmbedding(16, 0.3).to(dtype)
    onto = torch.linspace(-1, 1, 21, dtype=dtype).view(7, 3).requires_grad_()
    weights = [*given, *embed.parameters(), *mlp.parameters(), onto]
    told = []
    for without in (False, True):
        if without:
            for module in MODULES:
                monkeypatch.setattr(f"histoflow.flow.{module}.compiled", lambda x: False)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            rows_of_four = torch.ones(7, 4, dtype=dtype).cumsum(dim=0)
            found = attend(given, graph, chance), embed(*geometry), mlp(rows_of_four), mlp(rows_of_four, onto)
        there = sum((one * torch.linspace(-1, 1, one.numel(), dtype=dtype).view(one.shape)).sum() for one in found)
        told.append([*found, *torch.autograd.grad(there, weights)])
    for compiled, plain in zip(*told, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=within, atol=within * plain.detach().abs().max().item())


@pytest.mark.parametrize("loops", [True, False], ids=["compiled", "torch"])
def test_rows_in_bfloat16_change_results_and_gradients_by_their_rounding_alone(loops, places, connect, monkeypatch):
    given, xy = Inputs(*(one.detach().float().requires_grad_() for one in inputs())), places["jittered"]
    geometry, told = edge_geometry(xy, *connect(xy), dtype=torch.float32), []
    with torch.random.fork_rng():
        torch.manual_seed(2)
        embed, mlp = EdgeEmbedding(16, 0.3), GatedMLP(4, 64, 3, 0.3)
    onto = torch.linspace(-1, 1, 21).view(7, 3).requires_grad_()
    weights = [*given, *embed.parameters(), *mlp.parameters(), onto]
    for dtype in (torch.float32, torch.bfloat16):
        if dtype == torch.bfloat16 and not loops:
            for module in MODULES:
                monkeypatch.setattr(f"histoflow.flow.{module}.compiled", lambda x: False)
        with torch.random.fork_rng(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            torch.manual_seed(1)
            found = attend(given, near(), CHANCE), embed(*geometry), mlp(torch.ones(7, 4).cumsum(dim=0))
            added = mlp(torch.ones(7, 4).cumsum(dim=0), onto)
        assert {one.dtype for one in found} == {dtype}
        assert added.dtype == torch.float32
        found = *found, added
        there = sum((one * torch.linspace(-1, 1, one.numel()).view(one.shape)).sum() for one in found)
        told.append([*found, *torch.autograd.grad(there, weights)])
    unlike = 0
    for full, halved in zip(*told, strict=True):
        unlike += not torch.equal(full, halved.float())
        torch.testing.assert_close(halved.float(), full, rtol=0, atol=0.03 * full.detach().abs().max().item())
    assert unlike > len(weights) / 2


def test_shares_of_edges_kept_in_bfloat16_are_read_as_they_were_made():
    given, graph = Inputs(*(one.detach().float() for one in inputs())), near()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        shares = edges_in_first_layer(given.edge, given.to_edge)
        assert shares.dtype == torch.bfloat16
        torch.testing.assert_close(attend(given, graph, QUIET, shares), attend(given, graph, QUIET), rtol=0, atol=0)


def test_the_exponential_of_vectors_is_that_of_the_library():
    x = np.linspace(-86, 86, 4001, dtype=np.float32)
    found = np.array([rows._exp_single(one) for one in x], dtype=np.float64)
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)), rtol=2e-7)
    opened = np.array([rows._sigmoid_single(one) for one in x], dtype=np.float64)
    np.testing.assert_allclose(opened, 1 / (1 + np.exp(-x.astype(np.float64))), rtol=3e-7, atol=2e-35)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_parts_cover_a_range_once_and_leave_torch_as_it_was(n_threads):
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        found = in_parts(lambda part: (part, torch.get_num_threads(), torch.is_grad_enabled()), 8, torch.device("cpu"))
        assert torch.get_num_threads() == n_threads
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == n_threads
    finally:
        torch.set_num_threads(before)
    assert [item for (start, stop), _, _ in found for item in range(start, stop)] == list(range(8))
    assert len(found) == n_threads
    if n_threads > 1:
        assert {told[1:] for told in found} == {(1, False)}


IN_A_COPY = """
import os
import torch
from histoflow.flow.compiled import in_parts

torch.set_num_threads(2)
assert in_parts(lambda part: part, 8, torch.device("cpu")) == [(0, 4), (4, 8)]
copy = os.fork()
assert in_parts(lambda part: part, 8, torch.device("cpu")) == [(0, 4), (4, 8)]
if copy:
    assert os.waitpid(copy, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not copied on this system")
def test_a_copy_of_the_process_has_threads_of_its_own():
    subprocess.run([sys.executable, "-c", IN_A_COPY], check=True, timeout=120)


def test_an_error_in_a_part_leaves_torchs_threads_as_they_were():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            in_parts(lambda part: 1 // part[0], 8, torch.device("cpu"))
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("inference", [False, True])
def test_results_hardly_depend_on_threads(inference):
    # Sums over parts are taken in another order; what is dropped is the same.
    given, found, before = inputs(), [], torch.get_num_threads()
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        try:
            with torch.inference_mode(inference):
                attended = attend(given, near(), CHANCE)
            gradients = () if inference else torch.autograd.grad(attended.square().sum(), given)
        finally:
            torch.set_num_threads(before)
        found.append([attended, *gradients])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


TRAIN_ONCE = """
import hashlib
import torch
from tests.flow.test_attention import CHANCE, inputs, near
from histoflow.flow.attention import Inputs, attend
from histoflow.flow.gated import GatedMLP

torch.set_num_threads(1)
torch.manual_seed(0)
given, mlp = Inputs(*(one.detach().float().requires_grad_() for one in inputs())), GatedMLP(4, 64, 3, 0.3)
found = attend(given, near(), CHANCE), mlp(torch.randn(200, 4))
gradients = torch.autograd.grad(sum(one.square().sum() for one in found), [*given, *mlp.parameters()])
print(hashlib.sha256(b"".join(one.detach().numpy().tobytes() for one in (*found, *gradients))).hexdigest())
"""


def test_loops_compiled_here_or_kept_in_files_in_part_or_in_whole_give_the_same_bytes(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def told():
        command = [sys.executable, "-c", TRAIN_ONCE]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    compiled_here = told()
    assert told() == compiled_here
    kept = list(tmp_path.rglob("*attend-*")) + list(tmp_path.rglob("*normalize_backward*"))
    assert kept
    for path in kept:
        path.unlink()
    assert told() == compiled_here


def test_loops_are_compiled_anew_when_what_is_compiled_into_them_changes():
    folder = Path(kernels.__file__).parent
    made_of = b"".join((folder / f"{name}.py").read_bytes() for name in ("jit", "numbers", "operands", "rows"))
    found = hashlib.sha256(made_of).hexdigest()[:16]
    assert found == kernels.MADE_OF, f"write MADE_OF = {found!r} in kernels.py, or old loops stay in use"


def test_random_words_are_those_of_torch():
    choice = Choice.of(0.3, 5)
    words = choice.words((1000,), 2**32 - 400, torch.device("cpu"))
    chosen = choice.compiled()
    numbers = np.empty(1000)
    kernels.scale(np.ones(1000), chosen, np.full(1, 2.0), 2**32 - 400, numbers)
    assert 0.6 < (numbers == 2).mean() < 0.8
    np.testing.assert_array_equal(numbers == 2, words.numpy().astype(np.int64) + 2**31 >= chosen.least)


@pytest.mark.parametrize("shape", [(3, 5), (1 << 12, 1 << 10), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, None])
def test_numbers_not_set_yet_are_of_the_shape_and_lie_where_vectors_begin(shape, dtype):
    made = empty(torch.ones(2), *shape, dtype=dtype)
    assert (made.shape, made.dtype, made.is_contiguous()) == (shape, dtype or torch.float32, True)
    assert made.numel() == 0 or made.data_ptr() % 64 == 0
    assert made.fill_(3).eq(3).all()


@pytest.mark.parametrize("n_rows", [0, 9])
def test_a_network_in_bfloat16_differs_by_its_rounding_alone(n_rows):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        mlp, x, onto = GatedMLP(4, 64, 3, 0.3), torch.randn(n_rows, 4), torch.randn(n_rows, 3)
    told = []
    for dtype in (torch.float32, torch.bfloat16):
        mlp, given = mlp.to(dtype), [one.to(dtype).requires_grad_() for one in (x, onto)]
        with torch.random.fork_rng():
            torch.manual_seed(1)
            found = mlp(*given)
        told.append([found, *torch.autograd.grad(found.sum(), [*given, *mlp.parameters()])])
        assert {one.dtype for one in told[-1]} == {dtype}
    for full, halved in zip(*told, strict=True):
        highest = full.detach().abs().max().item() if full.numel() else 0.0
        torch.testing.assert_close(halved.float(), full, rtol=0, atol=0.05 * highest)
