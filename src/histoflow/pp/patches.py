"""Embeddings of patches that are images already, of one known size in µm; no slide, so no context around them."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histoflow._errors import ShapeError
from histoflow._files import cache_folder, value_hash
from histoflow.pp.blocks import cached_features
from histoflow.pp.encoders import Encoder

Floats = NDArray[np.float32]

_FORMAT = 1


class Images(Protocol):
    """RGB images, uint8, (n_patches, height, width, 3): an array, or an opened file that is read slice by slice."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_patches, height, width, 3)."""

    def __getitem__(self, some: slice) -> Any:
        """Some of them."""


def embed_patches(
    images: Images,
    encoder: Encoder,
    *,
    content_id: str,
    patch_um: float,
    cache_dir: str | Path | None = None,
    batch_size: int = 32,
    device: str = "cpu",
) -> tuple[Floats, dict[str, Any]]:
    """Embed patches, each by itself: a row depends on its own patch and on nothing else.

    Patches of another size than the encoder takes are resampled by Pillow's antialiased bilinear filter, as those that
    are cut from a slide. Blocks of features are kept as they are made; what is there is not made again.

    Parameters
    ----------
    images
        The patches.
    encoder
        What describes a patch.
    content_id
        Hash of the patches' content, under which features are cached.
    patch_um
        Side of a patch in µm, for the record.
    cache_dir
        Cache folder; None for the default.
    batch_size
        Patches encoded at once; it never changes a number.
    device
        Where the encoder runs.

    Returns
    -------
    Embeddings, float32, shape (n_patches, n_features); and how they were made, in the form that `Embedder` records.

    Raises
    ------
    ShapeError
        If the images are not square RGB, or there are none.
    """
    shape = images.shape
    if len(shape) != 4 or not shape[0] or shape[1] != shape[2] or shape[3] != 3:
        raise ShapeError(f"patches have shape {shape}, wanted (n_patches, side, side, 3) with at least one patch")
    told = {
        "format": _FORMAT,
        "patches": content_id,
        "shape": list(shape),
        "encoder": encoder.facts(),
        "device": device.partition(":")[0],
        "versions": {name: version(name) for name in ("torch", "pillow")},
    }
    features = cached_features(
        cache_folder(cache_dir) / "features" / f"{value_hash(told)}.npy",
        shape[0],
        partial(_resampled, images, encoder.patch_px),
        encoder,
        batch_size=batch_size,
        device=device,
        label=f"{encoder.name}, {shape[0]} patches",
    )
    return features, _described(encoder, patch_um)


def _resampled(images: Images, patch_px: int, some: slice) -> NDArray[np.uint8]:
    """Some of the patches, uint8, (n_some, patch_px, patch_px, 3)."""
    patches = np.asarray(images[some], dtype=np.uint8)
    if patches.shape[1] == patch_px:
        return patches
    size, kind = (patch_px, patch_px), Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(patch).resize(size, kind)) for patch in patches])


def _described(encoder: Encoder, patch_um: float) -> dict[str, Any]:
    """How they were made. There is no tissue grid: features are as the encoder gives them, not in its units."""
    made = {**encoder.facts(), **encoder.layout(), "patch_um": [float(patch_um)], "context_um": [], "grid_um": 0.0}
    return {**made, "id": value_hash({key: value for key, value in made.items() if key != "licence"})[:12]}
