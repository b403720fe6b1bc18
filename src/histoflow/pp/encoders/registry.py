"""The registry of encoders: what turns patches into embeddings, by name."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from histoflow._errors import MissingDependencyError, OptionError
from histoflow.pp import scatter
from histoflow.pp.encoders import timm_models, zoo
from histoflow.pp.encoders.dense import scatter_dense
from histoflow.pp.encoders.optional import TIMM, ZOO, why_not
from histoflow.pp.encoders.record import Card, Encoder, EncoderInfo
from histoflow.pp.encoders.weights import is_program, weights_file

_OURS = Card("BSD-3-Clause")


def get_encoder(
    name: str,
    *,
    weights: str | Path | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    amp: bool = False,
) -> Encoder:
    """Return the encoder called `name`, ready to run.

    Parameters
    ----------
    name
        ``"scatter"`` or ``"color"``, which need no weights; a model of LazySlide's zoo such as ``"uni2"``; a timm model
        such as ``"resnet50"``, with ``timm:`` in front or without; or, for a network of your own, the path of a
        TorchScript or ``torch.export`` file, or any name together with `weights`.
    weights
        Local file of the weights, or a folder that holds it; every encoder that has weights takes it. None to look in
        the hub's cache (``HF_HOME``) and ours, then to download, unless ``HF_HUB_OFFLINE`` forbids it.
    token
        Token of the Hugging Face hub for gated weights; None for the one that the hub's own settings hold.
    cache_dir
        Cache folder for downloads where ``HF_HOME`` is not set; None for the default.
    amp
        Compute a network in bfloat16 where the machine is faster with it and the first batch agrees with float32, see
        `Encoder`. Such embeddings are another kind than those in float32.

    Returns
    -------
    The encoder, its weights loaded and its width read from a forward pass.

    Raises
    ------
    OptionError
        If there is none of that name, or it is no network and weights or `amp` are given.
    WeightsError
        If the weights are missing, unreachable or of another network: what to download, where to put it, and which
        setting finds it.
    MissingDependencyError
        If a library it needs is not installed or broken.

    Examples
    --------
    >>> from histoflow.pp import get_encoder
    >>> get_encoder("color").n_features
    15
    """
    if name not in _BUILT_IN:
        made = _network(name, weights, token, cache_dir)
        return replace(made, amp=True) if amp else made
    if weights is not None:
        raise OptionError(f"encoder {name} has no weights, but weights={str(weights)!r} are given; leave them out")
    if amp:
        raise OptionError(f"encoder {name} is no network and gains nothing from bfloat16; leave out amp")
    return _BUILT_IN[name]()


def _network(name: str, weights: str | Path | None, token: str | None, cache_dir: str | Path | None) -> Encoder:
    if zoo.known(name):
        return zoo.build(name, weights=weights, token=token, cache_dir=cache_dir)
    if name.startswith(timm_models.PREFIX) or timm_models.known(name):
        return timm_models.build(name, weights=weights, token=token, cache_dir=cache_dir)
    if weights is None and Path(name).expanduser().exists():
        return Encoder.from_file(name)
    if weights is not None and is_program(weights_file(weights)):
        return Encoder.from_file(weights, name=name)
    raise _unknown(name)


def available_encoders(pattern: str = "*", *, cache_dir: str | Path | None = None) -> list[EncoderInfo]:
    """List the encoders whose name fits a shell pattern such as ``"*uni*"``; nothing is built or downloaded.

    Parameters
    ----------
    pattern
        Shell pattern. The 1,800 pretrained models of timm are listed only for one that begins with ``timm:``, such
        as ``"timm:*resnet*"``.
    cache_dir
        Cache folder in which weights are looked for; None for the default.

    Returns
    -------
    Our own first, then LazySlide's by name, then timm's; each says whether it is usable here and, if not, why not.
    """
    ours = [_info(make()) for name, make in _BUILT_IN.items() if fnmatch(name, pattern)]
    return [*ours, *zoo.listed(pattern, cache_dir), *timm_models.listed(pattern, cache_dir)]


def unavailable() -> dict[str, str]:
    """Libraries of encoders that cannot be used on this machine, and why; empty where all can."""
    reasons = {"LazySlide's model zoo": why_not(ZOO), "timm": why_not(TIMM)}
    return {library: reason for library, reason in reasons.items() if reason}


def _unknown(name: str) -> OptionError | MissingDependencyError:
    offered = ", ".join(info.name for info in available_encoders())
    if reason := why_not(TIMM):
        return MissingDependencyError(
            f"encoder is {name!r}, which is none of {offered}; models of timm cannot be used here: {reason}"
        )
    return OptionError(
        f"encoder is {name!r}; choose one of {offered}, a model of timm (histoflow encoders 'timm:*'), or the path of "
        "a TorchScript or torch.export file"
    )


def _info(encoder: Encoder) -> EncoderInfo:
    return EncoderInfo(encoder.name, encoder.n_features, encoder.patch_px, encoder.card)


def _scatter() -> Encoder:
    return Encoder(
        "scatter",
        scatter.VERSION,
        scatter.N_FEATURES,
        scatter.PATCH_PX,
        scatter.encode,
        _OURS,
        dense=scatter_dense(),
        parts=scatter.PARTS,
    )


def _color() -> Encoder:
    width = 3 * len(scatter.QUANTILES)
    return Encoder("color", scatter.STAINS_VERSION, width, scatter.PATCH_PX, scatter.stain_quantiles, _OURS)


_BUILT_IN = {"scatter": _scatter, "color": _color}
