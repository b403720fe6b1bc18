"""The denoiser beside the published network written the obvious way: `python benchmarks/denoiser.py --spots 4000`.

Prints one line of JSON: on each side, medians of wall clock (`step_s`, `sample_s`, `sample16_s`) and of processor
time (the same with `cpu_` before it), peak memory of training (`max_rss_gb`) and of drawing (`sample_rss_gb`), and the
number of parameters. Each side runs in processes of its own, ours and the reference in turn, `--repeats` times; on
both, threads that wait do so asleep, as in the commands of histoflow (`OMP_WAIT_POLICY`).

All spots of a section, on a jittered hexagonal lattice, are one crop: 1024 features, 50 genes, 8 neighbours (no ties),
published sizes, four calls of the denoiser a draw. A training step is forward, backward, clipping and Adam's step. Ours
has the graph and its geometry from before the step, as has a step on a whole section that does not change; training on
random crops finds them anew for each crop. The reference finds them in every layer, as it was published. Edges are
embedded within the step on both sides. A draw includes everything from coordinates on. `--precision best` lets ours
use bfloat16 matrix products; the reference stays in float32.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from reference_stflow import ReferenceDenoiser
from torch import Tensor

from histoflow.flow import Denoiser, EdgeGeometry, EulerSampler, SpotContext, edge_geometry, matrices
from histoflow.pp.graph import neighbors

N_FEATURES, N_GENES, N_NEIGHBORS, N_CALLS = 1024, 50, 8, 4
N_RUNS = 3
"""Of a step or a draw, after a first one: training takes hundreds of steps, and the second is not yet as fast."""
TASKS = ("step", "sample", "sample16")


def section(n_spots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, places in pitches (float64) and expression of a section."""
    torch.manual_seed(0)
    side = int(np.ceil(n_spots**0.5))
    column, row = np.meshgrid(np.arange(side), np.arange(side))
    lattice = np.stack([column + 0.5 * (row % 2), row * 3**0.5 / 2], axis=-1).reshape(-1, 2)[:n_spots]
    xy = lattice + np.random.default_rng(0).normal(0, 0.03, lattice.shape)
    return torch.randn(n_spots, N_FEATURES), torch.from_numpy(xy), torch.rand(n_spots, N_GENES)


class Ours:
    """Our denoiser, with the graph of a section."""

    def __init__(self, features: Tensor, xy: Tensor, precision: str) -> None:
        self.features, self.xy, self.precision = features, xy, "bf16" if precision == "best" else precision
        self.network = Denoiser(N_FEATURES, N_GENES)
        self.graph = self.connect()

    def connect(self) -> tuple[EdgeGeometry, Tensor, Tensor]:
        """Find geometry, neighbours and which of them are real."""
        found = neighbors(self.xy.numpy(), N_NEIGHBORS, tie_tolerance=0)
        index, mask = torch.from_numpy(found.index), torch.from_numpy(found.mask)
        return edge_geometry(self.xy, index, mask), index, mask

    def estimate(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Estimate expression (n_spots, n_genes) at time `t`."""
        with matrices(self.precision, x_t.device):
            context: SpotContext = self.network.context(self.features, *self.graph)
            return self.network(x_t, t, context)

    def sample(self, starts: Tensor) -> Tensor:
        """Draw from every start, (n_draws, n_spots, n_genes)."""
        with matrices(self.precision, starts.device):
            context = self.network.context(self.features, *self.connect())
            return EulerSampler(N_CALLS).sample(lambda x, t: self.network(x, t, context), starts)


class Reference:
    """The published network, which is handed features and places at every call."""

    def __init__(self, features: Tensor, xy: Tensor, _: str) -> None:
        self.features, self.xy = features, xy.float()
        self.network = ReferenceDenoiser(N_FEATURES, N_GENES, n_neighbors=N_NEIGHBORS)

    def estimate(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Estimate expression (n_spots, n_genes) at time `t`."""
        return self.network(x_t, t, self.features, self.xy)

    def sample(self, starts: Tensor) -> Tensor:
        """Draw from every start, (n_draws, n_spots, n_genes)."""
        return torch.stack([EulerSampler(N_CALLS).sample(self.estimate, start) for start in starts])


def step_of(side: Ours | Reference, expression: Tensor) -> Callable[[], None]:
    optimiser = torch.optim.Adam(side.network.parameters())

    def step() -> None:
        optimiser.zero_grad()
        t, x0 = torch.rand(()), torch.rand_like(expression)
        estimate = side.estimate(torch.lerp(x0, expression, t), t)
        torch.nn.functional.mse_loss(estimate, expression).backward()
        torch.nn.utils.clip_grad_norm_(side.network.parameters(), 1.0)
        optimiser.step()

    return step


def run(name: str, task: str, given: argparse.Namespace) -> dict[str, float]:
    """One task of one side, in this process: median seconds of runs after the first, and peak memory."""
    torch.set_num_threads(given.threads)
    features, xy, expression = section(given.spots)
    side = {"ours": Ours, "reference": Reference}[name](features, xy, given.precision)
    parameters = sum(p.numel() for p in side.network.parameters())
    if task == "step":
        work = step_of(side, expression)
    else:
        side.network.eval()
        starts = torch.rand(16 if task == "sample16" else 1, given.spots, N_GENES)

        def work() -> None:
            with torch.inference_mode():
                side.sample(starts)

    if task != "sample16":
        work()
    elif name == "ours":  # what is compiled at the first call is compiled before, as in the other tasks
        with torch.inference_mode():
            side.sample(torch.rand(1, given.spots, N_GENES))
    taken = [times(work) for _ in range(1 if task == "sample16" else N_RUNS)]
    told = {key: statistics.median(one[key] for one in taken) for key in taken[0]}
    return told | {"rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, "parameters": parameters}


def times(work: Callable[[], None]) -> dict[str, float]:
    """Seconds of wall clock and of processor."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return {"s": time.perf_counter() - wall, "cpu_s": time.process_time() - processor}


def in_process(name: str, task: str, given: argparse.Namespace) -> dict[str, float]:
    """One task of one side, in a process of its own."""
    sizes = ["--spots", str(given.spots), "--precision", given.precision, "--threads", str(given.threads)]
    command = [sys.executable, __file__, "--side", name, "--task", task, *sizes]
    environment = os.environ | {"OMP_NUM_THREADS": str(given.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout)


def medians(runs: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    told: dict[str, float] = {}
    for task, found in runs.items():
        told[f"{task}_s"] = round(statistics.median(one["s"] for one in found), 4)
        told[f"cpu_{task}_s"] = round(statistics.median(one["cpu_s"] for one in found), 4)
        told["parameters"] = found[0]["parameters"]
        if task != "sample16":
            key = {"step": "max_rss_gb", "sample": "sample_rss_gb"}[task]
            told[key] = round(statistics.median(one["rss_gb"] for one in found), 3)
    return told


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--spots", type=int, default=4000)
    parser.add_argument("--precision", choices=["fp32", "best"], default="fp32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--sides", nargs="+", choices=["ours", "reference"], default=["ours", "reference"])
    parser.add_argument("--json", action="store_true", help="the output is JSON with or without it")
    parser.add_argument("--side", choices=["ours", "reference"], help=argparse.SUPPRESS)
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(run(given.side, given.task, given)))
        return
    runs: dict[str, dict[str, list[dict[str, float]]]] = {
        name: {task: [] for task in given.tasks} for name in given.sides
    }
    for _ in range(given.repeats):
        for task in given.tasks:
            for name in given.sides:
                runs[name][task].append(in_process(name, task, given))
    print(json.dumps({name: medians(found) for name, found in runs.items()}))


if __name__ == "__main__":
    main()
