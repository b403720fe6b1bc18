"""Peak memory of `stpath` on random weights of the published shapes: 200 genes at 2,000, 5,000 and 20,000 tiles.

Each size runs in a process of its own, beside one that only loads the weights: ``python benchmarks/stpath_memory.py``;
with ``--genes 38982 --stream`` all genes go to a zarr instead. Weights and zarr are written to a temporary folder.
Nothing is asserted.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from anndata import AnnData

from histoflow._keys import EMBEDDINGS, UNS
from histoflow.models import STPathZeroShot
from histoflow.workflow import predict_to_file

sys.path.insert(0, str(Path(__file__).parents[1]))

N_GENES = 38_982
SIZES = (0, 2_000, 5_000, 20_000)


def invented(n_tiles: int) -> AnnData:
    """Tiles on a square lattice with random embeddings that are recorded as GigaPath's."""
    rng, side = np.random.default_rng(0), int(np.ceil(np.sqrt(n_tiles)))
    xy = np.stack(np.divmod(np.arange(n_tiles), side), axis=1) * 112.0
    tiles = AnnData(shape=(n_tiles, 0))
    tiles.obsm["spatial"], tiles.obsm["spatial_um"] = xy / 0.5, xy
    tiles.obsm["gigapath"] = rng.standard_normal((n_tiles, 1536), dtype=np.float32)
    made = {"name": "gigapath", "n_features": 1536, "standardize": False} | dict(STPathZeroShot.embedding_recipe or {})
    tiles.uns[UNS] = {"section": "invented", EMBEDDINGS: {"gigapath": made}}
    return tiles


def one(folder: Path, n_tiles: int, n_genes: int, stream: bool) -> None:
    """Predict once and print tiles, peak memory in GB and seconds."""
    torch.set_num_threads(1)
    model = STPathZeroShot(folder / "stfm.pth", organ="Breast")
    panel = [f"GENE{number}" for number in np.linspace(0, N_GENES - 1, n_genes).astype(int)]
    model.fit([], panel=panel)
    start = time.perf_counter()
    if n_tiles and stream:
        assert predict_to_file(model, invented(n_tiles), folder / "all.zarr") == (n_tiles, n_genes)
    elif n_tiles:
        assert model.predict(invented(n_tiles)).shape == (n_tiles, n_genes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"{n_tiles:>8} {peak:>10.2f} {time.perf_counter() - start:>10.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=200)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "TILES"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(Path(given.one[0]), int(given.one[1]), given.genes, given.stream)
        return
    from tests.models.stpath_files import TRUE, write_files

    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), [f"GENE{number}" for number in range(N_GENES)], **TRUE)
        print(f"{'tiles':>8} {'peak GB':>10} {'seconds':>10}   ({given.genes} genes, one thread)", flush=True)
        for n_tiles in SIZES:
            again = [sys.executable, __file__, "--genes", str(given.genes), "--one", folder, str(n_tiles)]
            subprocess.run([*again, *(["--stream"] if given.stream else [])], check=True)


if __name__ == "__main__":
    main()
