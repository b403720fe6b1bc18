"""Tiles a second, ours beside LazySlide's `feature_extraction`: `python benchmarks/embedding.py [--precision bf16]`.

Prints one line of JSON. The same timm model with the same weights, drawn from a seed, the same slide, tiles,
precision and number of threads; each side runs in a process of its own, in turn, and times one pass over all tiles,
from opened slide to features, after a pass over a few. Ratios are medians over pairs. LazySlide gets a transform that
only normalises, as its own resamples a tile once more and cuts its border off: then the features are of the same
pixels, and it has less to do. The largest difference between the features of both is told, and their spread.

Tiles are 224 level-0 pixels wide, side by side, on an invented slide, or in the middle of `--slide`, such as the image
of a real section. With `--scatter` the encoder `scatter` at its full recipe, two fields of view a tile, stands beside
the bfloat16 forward of the network on as many images, in turn within one process.
"""

import argparse
import json
import resource
import subprocess
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

SIDE, MPP, WARM = 224, 0.5, 8
SIDES = ("ours", "lazyslide")


def write_slide(path: Path, n_tiles: int) -> None:
    """A tiled TIFF of smooth noise in the colours of a stain."""
    side = (int(np.ceil(n_tiles**0.5)) + 2) * SIDE
    coarse = np.random.default_rng(0).integers(90, 230, (side // 8, side // 8, 3), dtype=np.uint8)
    image = coarse.repeat(8, axis=0).repeat(8, axis=1)
    told = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER", "metadata": None}
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", compression="jpeg", **told)


def write_weights(name: str, path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model(name, pretrained=False, num_classes=0).state_dict(), path)


def corners(size: tuple[int, int], n_tiles: int) -> np.ndarray:
    """Upper left corners of a square of tiles in the middle of a slide (height, width), x, y in level-0 pixels."""
    per_row = int(np.ceil(n_tiles**0.5))
    first = (np.array(size)[::-1] - per_row * SIDE) // 2
    return first + np.stack(np.divmod(np.arange(n_tiles), per_row)[::-1], axis=1) * SIDE


def ours(slide: Path, name: str, weights: Path, folder: Path, precision: str) -> Callable[[int], np.ndarray]:
    from histoflow import io
    from histoflow.pp import Embedder, Recipe, get_encoder

    wsi = io.open_wsi(slide, mpp=MPP)
    encoder = replace(get_encoder(f"timm:{name}", weights=weights), amp=precision == "bf16")
    make = Embedder(encoder, Recipe(patch_um=(SIDE * MPP,), context_um=(), standardize=False), folder)
    return lambda n: make.places(wsi, corners(wsi.properties.shape, n) + SIDE / 2)[0]


def lazyslide(slide: Path, name: str, weights: Path, folder: Path, precision: str) -> Callable[[int], np.ndarray]:
    import lazyslide as zs
    from lazyslide_models import TimmModel
    from torchvision.transforms import v2
    from wsidata import TileSpec
    from wsidata.io import add_tiles

    from histoflow import io

    class Model(TimmModel):
        """Its features become float32, as numpy, in which LazySlide gathers them, knows no bfloat16."""

        def encode_image(self, image: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
            return super().encode_image(image).float()

    wsi = zs.open_wsi(io.open_wsi(slide, mpp=MPP).reader.file)
    wsi.set_mpp(MPP)
    model = Model(name, pretrained=False, checkpoint_path=str(weights))
    scale = {key: model.model.pretrained_cfg[key] for key in ("mean", "std")}
    plain = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(**scale)])
    half = {"amp": True, "autocast_dtype": torch.bfloat16} if precision == "bf16" else {"amp": False}

    def extract(n_tiles: int) -> np.ndarray:
        spec = TileSpec.from_wsidata(wsi, tile_px=SIDE, mpp=MPP)
        tissue = np.zeros(n_tiles, dtype=int)
        add_tiles(wsi, "tiles", corners(wsi.properties.shape, n_tiles), tile_spec=spec, tissue_ids=tissue)
        zs.tl.feature_extraction(wsi, model, transform=plain, device="cpu", pbar=False, key_added="f", **half)
        return np.asarray(wsi.tables["f"].X)

    return extract


def run(given: argparse.Namespace) -> dict:
    """One side, in this process."""
    torch.set_num_threads(given.threads)
    with TemporaryDirectory(dir=given.folder) as cache:
        side = {"ours": ours, "lazyslide": lazyslide}[given.side]
        call = side(given.slide, given.model, given.folder / "weights.safetensors", Path(cache), given.precision)
        call(WARM)
        wall, processor = time.perf_counter(), time.process_time()
        features = call(given.tiles)
        told = {"s": time.perf_counter() - wall, "cpu_s": time.process_time() - processor}
    np.save(given.folder / f"{given.side}.npy", np.asarray(features, dtype=np.float32))
    return told | {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def in_process(side: str, given: argparse.Namespace, slide: Path, folder: Path) -> dict:
    """One side, in a process of its own."""
    same = [f"--{key}={getattr(given, key)}" for key in ("model", "precision", "tiles", "threads")]
    command = [sys.executable, "-W", "ignore", __file__, "--side", side, "--slide", slide, "--folder", folder, *same]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def compared(given: argparse.Namespace, slide: Path, folder: Path) -> dict:
    """Medians of interleaved pairs, and how far features differ."""
    pairs = [{side: in_process(side, given, slide, folder) for side in SIDES} for _ in range(given.pairs)]
    told: dict = {}
    for side in SIDES:
        of_side = {key: median(pair[side][key] for pair in pairs) for key in ("s", "cpu_s", "peak_gb")}
        told[side] = {
            "tiles_per_s": round(given.tiles / of_side["s"], 2),
            "tiles_per_cpu_s": round(given.tiles / of_side["cpu_s"], 2),
            "peak_gb": round(of_side["peak_gb"], 2),
        }
    for key, ratio in (("s", "ratio"), ("cpu_s", "cpu_ratio")):
        told[ratio] = round(median(pair["lazyslide"][key] / pair["ours"][key] for pair in pairs), 2)
    features = {side: np.load(folder / f"{side}.npy") for side in SIDES}
    told["largest_difference"] = float(np.abs(features["ours"] - features["lazyslide"]).max())
    told["spread_of_features"] = float(features["lazyslide"].std())
    return told


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def scatter_beside(name: str, pairs: int, threads: int, n_tiles: int = 32) -> dict:
    """Tiles a second of `scatter`, both fields of view, and of a network's bfloat16 forward."""
    import timm

    from histoflow.pp import Recipe
    from histoflow.pp.scatter import PATCH_PX, encode

    torch.set_num_threads(threads)
    network = timm.create_model(name, pretrained=False, num_classes=0).eval()
    patches = torch.randint(256, (n_tiles, PATCH_PX, PATCH_PX, 3), dtype=torch.uint8)
    images = torch.rand(n_tiles, 3, SIDE, SIDE)

    def forward() -> None:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            network(images)

    def scatter() -> None:
        with torch.inference_mode():
            for _ in Recipe().patch_um:
                encode(patches)

    rounds = [{"scatter": seconds(scatter), name: seconds(forward)} for _ in range(pairs + 1)][1:]
    told = {f"{side}_tiles_per_s": round(n_tiles / median(one[side][0] for one in rounds), 1) for side in rounds[0]}
    ratio, of_cpu = (median(one[name][k] / one["scatter"][k] for one in rounds) for k in (0, 1))
    return told | {"ratio": round(ratio, 2), "cpu_ratio": round(of_cpu, 2)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet50", help="A timm model of 224 px.")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--tiles", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slide", type=Path, help="An image or slide, taken as 0.5 µm a pixel; without it, invented.")
    parser.add_argument("--scatter", action="store_true", help="Only `scatter` beside the network's forward.")
    parser.add_argument("--json", action="store_true", help="the output is JSON with or without it")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.side:
        print(json.dumps(run(given)))
        return
    about = {key: getattr(given, key) for key in ("model", "threads", "pairs")}
    if given.scatter:
        print(json.dumps(about | scatter_beside(given.model, given.pairs, given.threads)))
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        slide = given.slide or folder / "slide.tif"
        if given.slide is None:
            write_slide(slide, given.tiles)
        write_weights(given.model, folder / "weights.safetensors")
        about |= {"precision": given.precision, "tiles": given.tiles, "slide": given.slide.name if given.slide else ""}
        print(json.dumps(about | compared(given, slide, folder)))


if __name__ == "__main__":
    main()
