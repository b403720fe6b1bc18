"""From a network to a function of uint8 patches: preprocessing, device, width, and half precision once it is proved."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from histoflow._errors import HistoflowWarning, OptionError, ShapeError

EncodeFunction = Callable[[Tensor], Tensor]
"""Maps RGB patches, uint8 (n_patches, height, width, 3), to embeddings (n_patches, n_features)."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_AGREE = 0.999
_SAME = 1e-3
_AT_ONCE = 8
"""Patches that a processor encodes at once: what passes between two layers of so many mostly stays in its cache."""


class Normalize:
    """From uint8 patches to the float images that networks take.

    Parameters
    ----------
    mean, std
        Of red, green and blue, on the scale 0 to 1.
    """

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise OptionError(f"mean {mean} and std {std} must be three numbers each, std above 0")
        self._scale: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, patches: Tensor) -> Tensor:
        """From uint8 (n_patches, height, width, 3) to float32 (n_patches, 3, height, width)."""
        if patches.device not in self._scale:  # once for each device: a copy to it waits for what it is doing
            mean, std = (torch.tensor(value, device=patches.device).view(3, 1, 1) for value in (self.mean, self.std))
            self._scale[patches.device] = mean, std
        mean, std = self._scale[patches.device]
        images: Tensor = (patches.permute(0, 3, 1, 2) / 255 - mean) / std
        return images


class Network:
    """A network as an `EncodeFunction`; it follows the patches to their device.

    On a processor what has weights gets patches eight at a time, the last ones filled up with copies of the last patch:
    how a product is rounded may depend on its size, and a row is to depend on its patch alone.

    Parameters
    ----------
    run
        From what `prepare` returns to (n_patches, n_features).
    prepare
        From uint8 patches to the network's images; None for a function that takes the patches.
    owner
        What ``to(device)`` moves; None for a function without weights.
    """

    def __init__(
        self, run: Callable[[Any], Tensor], prepare: Callable[[Tensor], Any] | None, owner: Any = None
    ) -> None:
        self.run, self.prepare, self.owner = run, prepare, owner
        self._device = torch.device("cpu")

    def __call__(self, patches: Tensor) -> Tensor:
        """Encode patches, uint8 (n_patches, height, width, 3), to (n_patches, n_features)."""
        if self.owner is not None and patches.device != self._device:
            self.owner.to(patches.device)
            self._device = patches.device
        if self.owner is None or patches.device.type != "cpu":
            return self._run(patches)
        parts = torch.split(patches, _AT_ONCE)
        rows = [self._filled_up(part) for part in parts]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def _filled_up(self, patches: Tensor) -> Tensor:
        """Rows of at most eight patches, encoded as eight; what is no row for each patch is given back as it came."""
        missing = _AT_ONCE - len(patches)
        copies = patches[-1:].expand(missing, *patches.shape[1:])
        rows = self._run(torch.cat([patches, copies]) if missing else patches)
        told = isinstance(rows, Tensor) and rows.ndim > 0 and len(rows) == _AT_ONCE
        return rows[: len(patches)] if told else rows

    def _run(self, patches: Tensor) -> Tensor:
        return self.run(self.prepare(patches) if self.prepare else patches)


def read_width(encode: EncodeFunction, patch_px: int, name: str) -> int:
    """Numbers per patch, read from one forward pass of an invented patch on the processor.

    Raises
    ------
    ShapeError
        If the network does not return one row per patch.
    """
    return _rows(encode, _invented(1, patch_px), name).shape[1]


def check_rows(encode: EncodeFunction, patch_px: int, name: str) -> int:
    """Numbers per patch, after checking that a row depends on its own patch alone.

    Raises
    ------
    ShapeError
        If the function does not return one row per patch.
    OptionError
        If a patch gets another row when another patch lies beside it, or a second time.
    """
    patches = _invented(2, patch_px)
    alone, together = _rows(encode, patches[:1], name), _rows(encode, patches, name)
    if not torch.allclose(alone[0], together[0], rtol=_SAME, atol=_SAME * float(alone.abs().max())):
        raise OptionError(
            f"encoder {name} gives a patch another row when another patch lies beside it, or each time it is asked; "
            "give a function that treats each patch by itself (a network in eval mode)"
        )
    return together.shape[1]


def _rows(encode: EncodeFunction, patches: Tensor, name: str) -> Tensor:
    try:
        with torch.inference_mode():
            rows = encode(patches)
    except RuntimeError as err:
        told = str(err).strip().splitlines()[-1]
        raise ShapeError(
            f"encoder {name} cannot take patches of {patches.shape[1]} px ({told}); give the patch_px that it takes"
        ) from err
    if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != len(patches):
        came = f"shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        raise ShapeError(f"encoder {name} returned {came} for {len(patches)} patches; wanted (n_patches, n_features)")
    return rows.float()


def _invented(n_patches: int, patch_px: int) -> Tensor:
    """Patches of noise, always the same ones."""
    shape = (n_patches, patch_px, patch_px, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class HalfPrecision:
    """Runs an encoder in bfloat16 where that is faster and its first batch agrees with float32.

    What was found holds for this object, device by device.
    """

    def __init__(self) -> None:
        self._agreed: dict[str, bool] = {}

    def __call__(self, encode: EncodeFunction, patches: Tensor, name: str) -> Tensor:
        """Encode patches as `encode` does, in bfloat16 where it was proved.

        Warns
        -----
        HistoflowWarning
            If the first batch disagrees; float32 is used from then on.
        """
        device = patches.device.type
        if device not in self._agreed:
            self._agreed[device] = bfloat16_is_faster(device) and self._agrees(encode, patches, name)
        return _in_half(encode, patches) if self._agreed[device] else encode(patches)

    def _agrees(self, encode: EncodeFunction, patches: Tensor, name: str) -> bool:
        full, half = encode(patches).float(), _in_half(encode, patches).float()
        least = float(nn.functional.cosine_similarity(full, half).min())
        if not least >= _AGREE:
            warnings.warn(
                f"encoder {name} in bfloat16 agrees with float32 only to a cosine of {least:.4f} (wanted {_AGREE}): "
                "float32 is used",
                HistoflowWarning,
                stacklevel=5,
            )
        return least >= _AGREE


def _in_half(encode: EncodeFunction, patches: Tensor) -> Tensor:
    with torch.autocast(patches.device.type, dtype=torch.bfloat16):
        return encode(patches)


def bfloat16_is_faster(device: str) -> bool:
    """Whether the hardware behind ``"cpu"`` or ``"cuda"`` multiplies bfloat16 by itself."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if device != "cpu":
        return False
    instructions = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name)() for name in instructions if hasattr(torch.cpu, name))
