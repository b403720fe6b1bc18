"""Speed of the offline default encoder, in patches per second and as a ratio that does not depend on the machine."""

import time
from collections.abc import Callable
from statistics import median

import torch

from histoflow.pp.scatter import PATCH_PX, encode


def seconds(call: Callable[[], object], repeats: int = 7) -> float:
    """Median time of a call, the first one left out."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times[1:])


def test_scatter_speed(record_property):
    n_patches, threads = 16, torch.get_num_threads()
    patches = torch.randint(256, (n_patches, PATCH_PX, PATCH_PX, 3), dtype=torch.uint8)
    images = patches.movedim(3, 1).float().contiguous()
    torch.set_num_threads(1)
    try:
        per_patch = seconds(lambda: encode(patches)) / n_patches
        per_fft = seconds(lambda: torch.fft.fft2(images)) / n_patches
    finally:
        torch.set_num_threads(threads)
    record_property("patches_per_s_one_thread", round(1 / per_patch, 1))
    record_property("ratio_to_fft_of_the_same_pixels", round(per_patch / per_fft, 1))
