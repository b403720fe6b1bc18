"""One section of 4,000 spots on a graphics card: seconds to fit the flow and to draw once, `python benchmarks/gpu.py`.

The section is invented: 990 features as wide as those of `scatter`, 50 genes that follow some of them, a square
lattice. The flow has its default recipe and is not calibrated. The first draw, which waits for kernels to be made,
is left out. One line of JSON with the name of the card; `--device cpu --spots 200 --quick` tries the same code without.
"""

import argparse
import json
import time
import warnings
from dataclasses import replace

import numpy as np
import scale
import torch

from histoflow import models


def timed(device: str, spots: int, quick: bool) -> dict:
    scale.SPOTS = spots
    section = scale.section("S", 0, 50)
    made = models.STFlow(device=device)
    if quick:
        made = made.clone(training=replace(made.training, **scale.QUICK))
    start = time.perf_counter()
    made.fit([section], panel=section.var_names.tolist())
    fit_s = time.perf_counter() - start
    draws = []
    for _ in range(6):
        start = time.perf_counter()
        predicted = made.predict(section, n_samples=1)
        draws.append(time.perf_counter() - start)
    if not np.isfinite(predicted.X).all():
        raise ValueError("a prediction holds NaN or infinity")
    return {"fit_s": round(fit_s, 2), "sample_s": round(float(np.median(draws[1:])), 4)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--spots", type=int, default=4000)
    parser.add_argument("--quick", action="store_true", help="One epoch, to try the code.")
    parser.add_argument("--json", action="store_true", help="the output is JSON with or without it")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    card = torch.cuda.get_device_name() if given.device.startswith("cuda") else given.device
    told = timed(given.device, given.spots, given.quick)
    print(json.dumps({"card": card, "spots": given.spots, "quick": given.quick, **told}))


if __name__ == "__main__":
    main()
