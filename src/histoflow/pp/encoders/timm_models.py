"""Every timm model as an encoder: weights from a local file or the hub, preprocessing from timm's own data config."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from histoflow._errors import OptionError, WeightsError
from histoflow.pp.encoders.dense import network_dense
from histoflow.pp.encoders.hub import Source, offline
from histoflow.pp.encoders.network import Network, Normalize
from histoflow.pp.encoders.optional import TIMM, needed, why_not
from histoflow.pp.encoders.record import UNSTATED, Card, Encoder, EncoderInfo, encoder_of
from histoflow.pp.encoders.weights import fit_state, is_program, path_hash, read_state, weights_file

PREFIX = "timm:"
_FILES = (("model.safetensors",), ("pytorch_model.bin",))


def listed(pattern: str, cache_dir: str | Path | None = None) -> list[EncoderInfo]:
    """Pretrained timm models whose name fits a pattern that begins with ``timm:``; there are 1,800."""
    if not pattern.startswith(PREFIX) or why_not(TIMM):
        return []
    names = needed(TIMM, "timm").list_models(pretrained=True)
    return [_info(name, cache_dir) for name in names if fnmatch(PREFIX + name, pattern)]


def _info(name: str, cache_dir: str | Path | None) -> EncoderInfo:
    cfg = needed(TIMM, name).get_pretrained_cfg(name)
    missing = ""
    if offline() and (source := _source(name, cfg)) is not None and source.found(cache_dir) is None:
        missing = "its weights are not here, and HF_HUB_OFFLINE is set; give weights="
    return EncoderInfo(PREFIX + name, None, cfg.input_size[-1], _card(cfg), missing)


def known(name: str) -> bool:
    """Whether timm is here and has a model of this name, with or without the tag of its weights."""
    return not why_not(TIMM) and bool(needed(TIMM, name).is_model(name.removeprefix(PREFIX)))


def build(name: str, *, weights: str | Path | None, token: str | None, cache_dir: str | Path | None) -> Encoder:
    """Build a timm model without its classifier.

    Raises
    ------
    OptionError
        If timm has no such model, or it takes no square images.
    WeightsError
        If the weights are missing, unreachable, or of another network.
    MissingDependencyError
        If timm cannot be imported.
    """
    name = name.removeprefix(PREFIX)
    timm = needed(TIMM, f"encoder {name}")
    if not timm.is_model(name):
        raise OptionError(f"timm has no model {name!r}; histoflow encoders 'timm:*' lists them")
    cfg = timm.get_pretrained_cfg(name)
    path = weights_file(_fetched(name, cfg, token, cache_dir) if weights is None else weights)
    card = _card(cfg)
    patch_px = _patch_px(name, cfg.input_size)
    if is_program(path):
        return Encoder.from_file(path, name=name, patch_px=patch_px, mean=cfg.mean, std=cfg.std, licence=card.licence)
    module = timm.create_model(name, pretrained=False, num_classes=0)
    fit(module, read_state(path), cfg.classifier, f"weights {path}")
    return _encoder(name, module.eval().to(memory_format=torch.channels_last), card, path, patch_px)


def _encoder(name: str, module: nn.Module, card: Card, path: Path, patch_px: int) -> Encoder:
    sized = replace(card, n_parameters=sum(weights.numel() for weights in module.parameters()))
    prepare = Normalize(sized.mean or (), sized.std or ())
    made = encoder_of(name, Network(module, prepare, module), patch_px, sized, path_hash(path))
    return replace(made, dense=network_dense(module, prepare, patch_px))


def fit(module: nn.Module, state: Mapping[str, Tensor], classifier: str | tuple[str, ...] | None, what: str) -> None:
    """Load a state dict into a timm model that has no classifier.

    A checkpoint in another layout (DINOv2's own, another image size) is first translated as timm does it. Every weight
    of the model must come from the file: timm itself leaves some at random without a word.

    Parameters
    ----------
    module
        The model, built with ``num_classes=0``.
    state
        Tensors by name; those of a classifier are left out.
    classifier
        Names of timm's classifier layers, from the model's pretrained config.
    what
        The weights, for messages.

    Raises
    ------
    WeightsError
        If names or shapes differ.
    """
    own = {name: value.shape for name, value in module.state_dict().items()}
    if {name: state[name].shape for name in own if name in state} != own:
        state = _translated(module, state, what)
    heads = (classifier,) if isinstance(classifier, str) else classifier or ()
    ends = tuple(f"{head}." for head in heads)
    fit_state(module, {name: value for name, value in state.items() if name in own or not name.startswith(ends)}, what)


def _translated(module: nn.Module, state: Mapping[str, Tensor], what: str) -> Mapping[str, Tensor]:
    translate = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if translate is None:
        return state
    try:
        translated: Mapping[str, Tensor] = translate(dict(state), module)
    except (KeyError, RuntimeError, ValueError, IndexError) as err:
        raise WeightsError(f"{what} are not those of a {type(module).__name__} ({err!r})") from err
    return translated


def _card(cfg: Any) -> Card:
    return Card(
        cfg.license or UNSTATED, source=cfg.hf_hub_id, mean=tuple(map(float, cfg.mean)), std=tuple(map(float, cfg.std))
    )


def _patch_px(name: str, input_size: tuple[int, int, int]) -> int:
    _, height, width = input_size
    if height != width:
        raise OptionError(f"timm's {name} takes images of {height} × {width} px; patches are squares: choose another")
    return height


def _source(name: str, cfg: Any) -> Source | None:
    if not cfg.hf_hub_id:
        return None
    files = ((cfg.hf_hub_filename,),) if cfg.hf_hub_filename else _FILES
    return Source(name, cfg.hf_hub_id, gated=False, files=files)


def _fetched(name: str, cfg: Any, token: str | None, cache_dir: str | Path | None) -> Path:
    source = _source(name, cfg)
    if source is None:
        raise WeightsError(f"the hub has no weights of timm's {name}; give a local file as weights= (--weights)")
    folder = source.fetch(token, cache_dir)
    return folder / cfg.hf_hub_filename if cfg.hf_hub_filename else folder
