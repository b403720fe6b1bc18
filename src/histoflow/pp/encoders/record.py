"""What an encoder is: name, licence, numbers per patch, and the function that makes them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from histoflow._errors import OptionError, ShapeError
from histoflow._files import file_hash
from histoflow.pp.encoders.dense import Dense
from histoflow.pp.encoders.network import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EncodeFunction,
    HalfPrecision,
    Network,
    Normalize,
    check_rows,
    read_width,
)
from histoflow.pp.encoders.weights import load_program, state_hash, weights_file

UNSTATED = "not stated"
_NAME = re.compile(r"[\w.-]+", re.ASCII)
NETWORK_VERSION = "1"
"""Changes when what we do around a network changes its numbers."""


@dataclass(frozen=True)
class Card:
    """What is known of an encoder apart from its numbers.

    Parameters
    ----------
    licence
        Licence of code and weights.
    gated
        Whether the weights must be asked for.
    mpp
        µm per pixel of the images it was trained on; None where it is not known, or more than one.
    n_parameters
        Its size; None for what was never trained.
    source
        Hub id of the weights.
    mean, std
        What red, green and blue are normalised by, on the scale 0 to 1; None where the encoder does it itself.
    """

    licence: str
    gated: bool = False
    mpp: float | None = None
    n_parameters: int | None = None
    source: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def facts(self) -> dict[str, Any]:
        """What is recorded of a trained encoder with its embeddings; nothing for one that was never trained."""
        if self.n_parameters is None:
            return {}
        known = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "licence"}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in known.items() if v is not None}


@dataclass(frozen=True)
class EncoderInfo:
    """An encoder as it is listed: nothing is built or downloaded.

    Parameters
    ----------
    name
        What `get_encoder` knows it by.
    n_features
        Numbers per patch; None where only building it tells.
    patch_px
        Side of the patches it takes in pixels; None where only building it tells.
    card
        Licence, access, size.
    why_not
        Why it cannot be used on this machine as it is; empty where it can.
    """

    name: str
    n_features: int | None
    patch_px: int | None
    card: Card
    why_not: str = ""

    @property
    def usable(self) -> bool:
        """Whether it can be used on this machine as it is, but for a download that needs no permission."""
        return not self.why_not

    @property
    def licence(self) -> str:
        """Licence of code and weights."""
        return self.card.licence

    @property
    def gated(self) -> bool:
        """Whether the weights must be asked for."""
        return self.card.gated

    @property
    def mpp(self) -> float | None:
        """µm per pixel of the images it was trained on, where it is known."""
        return self.card.mpp

    @property
    def n_parameters(self) -> int | None:
        """Its size; None where it is not known or nothing was trained."""
        return self.card.n_parameters


@dataclass(frozen=True)
class Encoder:
    """One way to describe a patch by numbers.

    Parameters
    ----------
    name
        What it is called everywhere; also the ``obsm`` slot of its embeddings.
    version
        Changes whenever the numbers change.
    n_features
        Length of an embedding of one patch.
    patch_px
        Side of the patches it takes, in pixels.
    encode
        The function itself; a row of its result may depend on that row's patch alone.
    card
        Licence, access, size and preprocessing.
    weights_hash
        SHA-256 of the weights, or ``"none"`` where there are none.
    amp
        Compute in bfloat16 where the machine is faster with it, once the first batch has agreed with float32 (cosine
        of every row at least .999); `dataclasses.replace(encoder, amp=True)` sets it.
    dense
        How it describes every 8 µm of a window; None for an encoder that only describes patches.
    parts
        Features that are worth looking at apart from the others too: of each part the spans of its columns in words,
        ``"0:5 15:57"``, the last column of a span not included.
    """

    name: str
    version: str
    n_features: int
    patch_px: int
    encode: EncodeFunction
    card: Card
    weights_hash: str = "none"
    amp: bool = False
    dense: Dense | None = field(repr=False, compare=False, default=None)
    parts: tuple[str, ...] = ()
    _half: HalfPrecision = field(init=False, repr=False, compare=False, default_factory=HalfPrecision)

    @property
    def licence(self) -> str:
        """Licence of code and weights."""
        return self.card.licence

    @property
    def gated(self) -> bool:
        """Whether the weights must be asked for."""
        return self.card.gated

    @property
    def mpp(self) -> float | None:
        """µm per pixel of the images it was trained on, where it is known."""
        return self.card.mpp

    @property
    def n_parameters(self) -> int | None:
        """Its size; None for what was never trained."""
        return self.card.n_parameters

    def facts(self) -> dict[str, Any]:
        """Everything that is recorded with an embedding, a model and a prediction."""
        names = ("name", "version", "n_features", "patch_px", "licence", "weights_hash")
        amp = {"amp": True} if self.amp else {}
        return {name: getattr(self, name) for name in names} | self.card.facts() | amp

    def layout(self) -> dict[str, Any]:
        """What is recorded with an embedding beside `facts`: `parts`, where there are any."""
        return {"parts": list(self.parts)} if self.parts else {}

    def __call__(self, patches: NDArray[np.uint8], device: str = "cpu") -> NDArray[np.float32]:
        """Encode patches, uint8 (n_patches, patch_px, patch_px, 3), to float32 (n_patches, n_features).

        Each row is that of its patch alone; a network's may differ in the last digits with the size of the batch, but
        not on a processor.

        Raises
        ------
        ShapeError
            If the encoder returns another shape than it promised.
        """
        return self.encode_images(torch.from_numpy(patches).to(device)).cpu().numpy()

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode patches where they are, uint8 (n_patches, patch_px, patch_px, 3), to float32 (n_patches, n_features).

        Nothing is copied from the device of `images`, nor is it waited for.

        Raises
        ------
        ShapeError
            If the encoder returns another shape than it promised.
        """
        with torch.inference_mode():
            encoded = self._half(self.encode, images, self.name) if self.amp else self.encode(images)
        if encoded.shape != (len(images), self.n_features):
            raise ShapeError(
                f"encoder {self.name} returned shape {tuple(encoded.shape)} for {len(images)} patches; "
                f"it promised ({len(images)}, {self.n_features})"
            )
        return encoded.float()

    @classmethod
    def from_callable(
        cls,
        function: Callable[[Tensor], Tensor],
        *,
        name: str,
        patch_px: int,
        mpp: float | None = None,
        mean: Sequence[float] | None = IMAGENET_MEAN,
        std: Sequence[float] | None = IMAGENET_STD,
        licence: str = UNSTATED,
    ) -> Encoder:
        """Make an encoder of any function or network.

        Parameters
        ----------
        function
            From images, float32 (n_patches, 3, patch_px, patch_px), to (n_patches, n_features). Of an ``nn.Module`` a
            copy in eval mode is kept. A plain function's numbers are told apart by `name` alone: give it another name
            when it changes.
        name
            What the encoder is called; also the ``obsm`` slot of its embeddings.
        patch_px
            Side of the patches it takes in pixels.
        mpp
            µm per pixel of the images it was trained on, if known.
        mean, std
            What red, green and blue are normalised by, on the scale 0 to 1; both None for a function that takes the
            patches themselves, uint8 (n_patches, patch_px, patch_px, 3).
        licence
            Licence of code and weights.

        Raises
        ------
        OptionError
            If only one of `mean` and `std` is None, or a row depends on other patches than its own.
        ShapeError
            If the function does not take such patches, or does not return one row per patch.

        Examples
        --------
        >>> from histoflow.pp import Encoder
        >>> mean_colour = Encoder.from_callable(lambda x: x.mean((2, 3)), name="mean-colour", patch_px=32)
        >>> mean_colour.n_features
        3
        """
        prepare = _preparation(mean, std)
        module = copy.deepcopy(function).eval() if isinstance(function, nn.Module) else None
        card = Card(licence, mpp=mpp, n_parameters=_size(module), mean=_listed(mean), std=_listed(std))
        made = encoder_of(name, Network(module or function, prepare, module), patch_px, card, check=True)
        return made if module is None else replace(made, weights_hash=state_hash(module))

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        name: str | None = None,
        patch_px: int = 224,
        mpp: float | None = None,
        mean: Sequence[float] | None = IMAGENET_MEAN,
        std: Sequence[float] | None = IMAGENET_STD,
        licence: str = UNSTATED,
    ) -> Encoder:
        """Make an encoder of a file that holds a whole network: TorchScript, or ``torch.export`` (``.pt2``).

        Such a file runs what is in it: take it from a source you trust.

        Parameters
        ----------
        path
            The file, or a folder that holds it.
        name
            What the encoder is called; None for the file's name without its last suffix.
        patch_px, mpp, mean, std, licence
            As for `from_callable`; ImageNet's preprocessing unless said otherwise.

        Raises
        ------
        WeightsError
            If the file is missing, damaged, or holds weights without a network.
        OptionError
            If only one of `mean` and `std` is None, or a row depends on other patches than its own.
        ShapeError
            If the network does not take such patches, or does not return one row per patch.
        """
        path = weights_file(path)
        prepare, module = _preparation(mean, std), load_program(path)
        card = Card(licence, mpp=mpp, n_parameters=_size(module), mean=_listed(mean), std=_listed(std))
        made = encoder_of(name or path.stem, Network(module, prepare, module), patch_px, card, check=True)
        return replace(made, weights_hash=file_hash(path))


def encoder_of(
    name: str, network: Network, patch_px: int, card: Card, weights_hash: str = "none", *, check: bool = False
) -> Encoder:
    """Make an encoder of a network, its width read from a forward pass.

    Parameters
    ----------
    name
        What the encoder is called.
    network
        The function.
    patch_px
        Side of the patches it takes in pixels.
    card
        Licence, access, size and preprocessing.
    weights_hash
        SHA-256 of its weights.
    check
        Whether it must be shown that a row depends on its patch alone; not needed where we built the network.

    Raises
    ------
    OptionError
        If the name has other characters than letters, digits and ``. _ -``, or `check` fails.
    ShapeError
        If the network does not take such patches, or does not return one row per patch.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(f"name of an encoder is {name!r}; it names slots and files: use letters, digits and . _ -")
    n_features = (check_rows if check else read_width)(network, patch_px, name)
    return Encoder(name, NETWORK_VERSION, n_features, patch_px, network, card, weights_hash)


def _preparation(mean: Sequence[float] | None, std: Sequence[float] | None) -> Normalize | None:
    if (mean is None) != (std is None):
        raise OptionError(f"mean is {mean} and std is {std}; give both, or None for both")
    return None if mean is None or std is None else Normalize(mean, std)


def _listed(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(float, values))


def _size(module: nn.Module | None) -> int:
    return sum(weights.numel() for weights in module.parameters()) if module is not None else 0
