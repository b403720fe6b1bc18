"""Tiles a second, ours beside LazySlide's `feature_extraction`: `python benchmarks/embedding.py [--json]`.

The same timm model, its weights drawn from a seed and saved, the same slide, tiles, precision and threads; both read
the slide and encode it, in turn, and the ratio is the median over pairs. Also how close the features are, and `scatter`
at its full recipe beside the bfloat16 forward of the same network on as many patches.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import tifffile
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import torchvision_stub  # noqa: F401  a torchvision built against another torch is repaired here alone

SIDE, MPP = 224, 0.5


def write_slide(path: Path, n_tiles: int) -> None:
    """A tiled TIFF of smooth noise in the colours of a stain."""
    rows = int(np.ceil(n_tiles**0.5))
    coarse = np.random.default_rng(0).integers(90, 230, (rows * SIDE // 8, rows * SIDE // 8, 3), dtype=np.uint8)
    image = coarse.repeat(8, axis=0).repeat(8, axis=1)
    told = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER", "metadata": None}
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", compression="jpeg", **told)


def write_weights(name: str, path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model(name, pretrained=False, num_classes=0).state_dict(), path)


def timed(call: Callable[[], np.ndarray]) -> tuple[np.ndarray, float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    found = call()
    return found, time.perf_counter() - wall, time.process_time() - processor


def sides(slide: Path, name: str, weights: Path, n_tiles: int, folder: Path, amp: bool) -> dict:
    """What is compared: functions that embed the tiles, each reading the slide anew."""
    import lazyslide as zs

    from histoflow import io
    from histoflow.pp import Embedder, Recipe, get_encoder

    theirs = zs.open_wsi(slide)
    zs.pp.tile_tissues(theirs, SIDE, mpp=MPP, tissue_key=None, background_filter=False)
    theirs.shapes["tiles"] = theirs.shapes["tiles"].iloc[:n_tiles]
    bounds = theirs.shapes["tiles"].bounds.to_numpy()
    centres = (bounds[:, :2] + bounds[:, 2:]) / 2
    ours = io.open_wsi(slide, mpp=MPP)
    encoder = replace(get_encoder(f"timm:{name}", weights=weights), amp=amp)
    recipe = Recipe(patch_um=(SIDE * MPP,), context_um=(), standardize=False)
    runs = iter(range(10_000))

    def embed() -> np.ndarray:
        return Embedder(encoder, recipe, folder / f"cache{next(runs)}").places(ours, centres)[0]

    def extract() -> np.ndarray:
        load = {"pretrained": False, "checkpoint_path": str(weights)}
        half = {"amp": True, "autocast_dtype": torch.bfloat16} if amp else {"amp": False}
        zs.tl.feature_extraction(theirs, name, load_kws=load, pbar=False, device="cpu", key_added="f", **half)
        return np.asarray(theirs.tables["f"].X)

    return {"ours": embed, "lazyslide": extract}


def compared(runs: dict, pairs: int) -> dict:
    """Medians of interleaved pairs; the first, which warms both up, is left out."""
    rounds = [{side: timed(call) for side, call in runs.items()} for _ in range(pairs + 1)]
    ours, theirs = (rounds[0][side][0] for side in ("ours", "lazyslide"))
    told = {}
    for side in runs:
        wall, processor = (median(one[side][k] for one in rounds[1:]) for k in (1, 2))
        told[side] = {"tiles_per_s": round(len(ours) / wall, 1), "cpu_s_per_tile": round(processor / len(ours), 4)}
    ratios = [[one["lazyslide"][k] / one["ours"][k] for one in rounds[1:]] for k in (1, 2)]
    told["ratio"], told["cpu_ratio"] = (round(median(kind), 2) for kind in ratios)
    told["largest_difference"] = float(np.abs(ours - theirs).max())
    told["spread_of_features"] = float(theirs.std())
    return told


def scatter_beside(name: str, pairs: int, n_tiles: int = 32) -> dict:
    """Tiles a second of `scatter`, both fields of view, and of a network's bfloat16 forward."""
    import timm

    from histoflow.pp import Recipe
    from histoflow.pp.scatter import PATCH_PX, encode

    network = timm.create_model(name, pretrained=False, num_classes=0).eval()
    patches = torch.randint(256, (n_tiles, PATCH_PX, PATCH_PX, 3), dtype=torch.uint8)
    images = torch.rand(n_tiles, 3, SIDE, SIDE)

    def forward() -> None:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            network(images)

    def scatter() -> None:
        for _ in Recipe().patch_um:
            encode(patches)

    rounds = [{"scatter": timed(scatter)[1:], name: timed(forward)[1:]} for _ in range(pairs + 1)][1:]
    told = {f"{side}_tiles_per_s": round(n_tiles / median(one[side][0] for one in rounds), 1) for side in rounds[0]}
    ratio, of_cpu = (median(one[name][k] / one["scatter"][k] for one in rounds) for k in (0, 1))
    return told | {"ratio": round(ratio, 2), "cpu_ratio": round(of_cpu, 2)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--tiles", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--amp", action="store_true", help="Both in bfloat16.")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_slide(folder / "slide.tif", given.tiles)
        write_weights(given.model, folder / "weights.safetensors")
        weights = folder / "weights.safetensors"
        runs = sides(folder / "slide.tif", given.model, weights, given.tiles, folder, given.amp)
        told = {"model": given.model, "amp": given.amp, "threads": given.threads, **compared(runs, given.pairs)}
    told["scatter"] = scatter_beside(given.model, given.pairs)
    print(json.dumps(told, indent=None if given.json else 2))


if __name__ == "__main__":
    main()
