"""LazySlide's image models as encoders: their architecture and transform, with weights that are on this machine.

The zoo's classes fetch weights from fixed addresses when they are made. Here the weights are found or fetched first,
and the class is given them, so that a local file is used by every model and no class asks the network by itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from histoflow._errors import MissingDependencyError, WeightsError
from histoflow._files import read_json
from histoflow.pp.encoders.dense import network_dense
from histoflow.pp.encoders.hub import Source, has_token, offline
from histoflow.pp.encoders.network import Network
from histoflow.pp.encoders.optional import TIMM, ZOO, needed, why_not
from histoflow.pp.encoders.record import UNSTATED, Encoder, EncoderInfo, encoder_of
from histoflow.pp.encoders.timm_models import fit
from histoflow.pp.encoders.weights import is_program, load_program, path_hash, read_state, state_hash, weights_file
from histoflow.pp.encoders.zoo_facts import ZOO_MODELS, Architecture, Family, ZooModel

_CLASSIFIERS = ("head", "fc")
_TAKES_FILE = ("conch", "conch-madeleine", "omiclip")
_SIZES = {"K": 1e3, "M": 1e6, "B": 1e9}


def models() -> dict[str, ZooModel]:
    """Every image model by name: those of our table, and those that a newer zoo has besides."""
    newer = {} if why_not(ZOO) else _registered()
    return dict(sorted({**newer, **ZOO_MODELS}.items()))


def known(name: str) -> bool:
    """Whether the zoo has an image model of this name."""
    return name in ZOO_MODELS or name in models()


def _registered() -> dict[str, ZooModel]:
    registry = needed(ZOO, "the zoo").MODEL_REGISTRY
    images = {name: made for name, made in registry.items() if hasattr(made, "encode_image")}
    return {name: _row(name, made) for name, made in images.items()}


def _row(name: str, made: Any) -> ZooModel:
    licences = made.license if isinstance(made.license, list) else [made.license or UNSTATED]
    repository = (made.hf_url or "").removeprefix("https://huggingface.co/")
    family: Family = "timm" if issubclass(made, needed(ZOO, name).TimmModel) else "package"
    size = str(made.param_size or "")
    millions = float(size[:-1]) * _SIZES[size[-1]] / 1e6 if size[-1:] in _SIZES else None
    return ZooModel(name, made.encode_dim, repository, ", ".join(licences), millions, bool(made.is_gated), family)


def listed(pattern: str, cache_dir: str | Path | None = None) -> list[EncoderInfo]:
    """Models of the zoo whose name fits a shell pattern."""
    return [_info(model, cache_dir) for name, model in models().items() if fnmatch(name, pattern)]


def _info(model: ZooModel, cache_dir: str | Path | None) -> EncoderInfo:
    why = _why_not(model) or _not_fetched(model, cache_dir)
    return EncoderInfo(model.name, model.n_features, model.patch_px, model.card, why)


def _why_not(model: ZooModel) -> str:
    """Which library it lacks here."""
    if model.family != "program" and (reason := why_not(ZOO)):
        return reason
    lacking = [package for package in model.needs if not _is_here(package)]
    return f"it needs {', '.join(lacking)}, which is not installed here" if lacking else ""


def _is_here(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ImportError:  # the parent of a submodule is absent
        return False


def _not_fetched(model: ZooModel, cache_dir: str | Path | None) -> str:
    """Why its weights cannot simply be downloaded; empty where they are here, or can be."""
    if model.source is not None and model.source.found(cache_dir) is not None:
        return ""
    if offline():
        return "its weights are not here, and HF_HUB_OFFLINE is set; give weights="
    if model.gated and not has_token():
        return f"gated: ask for access at https://huggingface.co/{model.repository}, then give token= or weights="
    return ""


def build(name: str, *, weights: str | Path | None, token: str | None, cache_dir: str | Path | None) -> Encoder:
    """Build a model of the zoo.

    Models whose code lies beside their weights (hibou, rudolfv2, …) run that code, as in LazySlide.

    Raises
    ------
    WeightsError
        If the weights are missing, unreachable, or of another network.
    MissingDependencyError
        If the zoo, or a package that this model needs, cannot be imported.
    """
    model = models()[name]
    path = Path(weights).expanduser() if weights is not None else _fetched(model, token, cache_dir)
    if path is not None and not _is_repository(path):
        path = weights_file(path)
        if model.family == "program" or is_program(path):
            return _program(model, path)
    if reason := _why_not(model):
        raise MissingDependencyError(f"encoder {name} cannot be used here: {reason}")
    return _original(model, path, token)


def _fetched(model: ZooModel, token: str | None, cache_dir: str | Path | None) -> Path | None:
    """Folder or file of the weights; None where the zoo's class fetches them itself."""
    if model.source is None:
        return None
    folder = model.source.fetch(token, cache_dir)
    single = [files[0] for files in model.source.files if len(files) == 1 and (folder / files[0]).is_file()]
    return folder / single[0] if single else folder


def _is_repository(path: Path) -> bool:
    return (path / "config.json").is_file()


def _program(model: ZooModel, path: Path) -> Encoder:
    """A whole network from a file, prepared for as the zoo prepares for this model."""
    if model.family == "program":
        card, patch_px = model.card, model.patch_px
        made = Encoder.from_file(path, name=model.name, patch_px=patch_px, licence=card.licence)
        return replace(made, card=replace(card, n_parameters=made.n_parameters))
    module, blank = load_program(path), _blank(model)
    blank.img_size = (224, 224)
    try:
        transform = blank.get_transform()
    except AttributeError:  # its preprocessing is written in the weights' folder
        transform = None
    if transform is None:
        raise WeightsError(
            f"weights {path} are a whole network, and LazySlide does not say without the original weights how images "
            f"are prepared for {model.name}; use Encoder.from_file(…, name={model.name!r}, mean=…, std=…)"
        )
    network = Network(module, _prepared(transform), module)
    return _encoder(model, network, transform, module, path_hash(path), check=True)


def _original(model: ZooModel, path: Path | None, token: str | None) -> Encoder:
    """The zoo's own class with these weights."""
    made = _MAKE[model.family](model, path, token)
    made.model.eval()
    transform = made.get_transform()
    network = Network(made.encode_image, _prepared(transform), made)
    return _encoder(model, network, transform, made.model, path_hash(path) if path else state_hash(made.model))


def _encoder(
    model: ZooModel, network: Network, transform: Any, module: nn.Module, weights_hash: str, *, check: bool = False
) -> Encoder:
    steps = {type(step).__name__: step for step in getattr(transform, "transforms", ())}
    patch_px = _side(steps["Resize"].size) if "Resize" in steps else model.patch_px
    scale = steps.get("Normalize")
    mean, std = (tuple(map(float, getattr(scale, key))) if scale else None for key in ("mean", "std"))
    size = sum(weights.numel() for weights in module.parameters())
    card = replace(model.card, n_parameters=size, mean=mean, std=std)
    made = encoder_of(model.name, network, patch_px, card, weights_hash, check=check)
    return replace(made, dense=network_dense(module, network.prepare, patch_px))


def _side(size: int | Sequence[int]) -> int:
    return size if isinstance(size, int) else size[0]


def _prepared(transform: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor]:
    """From uint8 patches to what the zoo's class takes: its transform's images, or bytes for its own processor."""

    def prepare(patches: Tensor) -> Tensor:
        images = patches.permute(0, 3, 1, 2).contiguous()
        return images if transform is None else transform(images).as_subclass(Tensor)

    return prepare


def _class_of(model: ZooModel) -> Any:
    return needed(ZOO, f"encoder {model.name}").MODEL_REGISTRY[model.name]


def _blank(model: ZooModel) -> Any:
    """An instance of the zoo's class whose constructor, which fetches weights, has not run."""
    made = _class_of(model)
    return made.__new__(made)


def _from_state(model: ZooModel, path: Path, token: str | None) -> Any:
    """The class takes a file of torch's own: it gets one in memory, made of weights that were read safely."""
    buffer = BytesIO()
    torch.save(read_state(path), buffer)
    buffer.seek(0)
    try:
        return _class_of(model)(model_path=buffer)
    except (RuntimeError, KeyError) as err:
        told = " ".join(str(err).split())[:300]
        raise WeightsError(f"weights {path} are not those of {model.name} ({told} …)") from err


def _from_timm(model: ZooModel, path: Path, token: str | None) -> Any:
    """The class asks its base for a repository of the hub: a base in between answers with our file."""
    zoo, made = needed(ZOO, model.name), _class_of(model)
    base = zoo.TimmViTModel if issubclass(made, zoo.TimmViTModel) else zoo.TimmModel
    architecture = _architecture(model, path)
    weights = weights_file(path)
    state = read_state(weights)

    def build_locally(self: Any, name: str, token: str | None = None, **options: Any) -> None:
        options = {**architecture.arguments, **options, "pretrained": False}
        base.__init__(self, architecture.name, **options)
        fit(self.model, state, _CLASSIFIERS, f"weights {weights}")

    between = type("FromFile", (base,), {"__init__": build_locally})
    return type(made.__name__, (made, between), {})()


def _architecture(model: ZooModel, path: Path) -> Architecture:
    config = (path if path.is_dir() else path.parent) / "config.json"
    if config.is_file():
        told = read_json(config)
        size = told.get("pretrained_cfg", {}).get("input_size")
        overlay = {"pretrained_cfg_overlay": {"input_size": tuple(size)}} if size else {}
        return Architecture(told["architecture"], (told.get("model_args") or {}) | overlay)
    if model.architecture is None:
        raise WeightsError(
            f"the network of weights {path} is not known; put the config.json of {model.repository} beside"
        )
    return model.architecture


def _from_dinov2(model: ZooModel, path: Path, token: str | None) -> Any:
    made, architecture = _blank(model), _architecture(model, path)
    made.model = needed(TIMM, model.name).create_model(architecture.name, num_classes=0, **architecture.arguments)
    fit(made.model, read_state(path), _CLASSIFIERS, f"weights {path}")
    return made


def _from_folder(model: ZooModel, path: Path, token: str | None) -> Any:
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{model.name} needs the config.json of {model.repository} beside its weights in {folder}")
    made = _blank(model)
    auto = importlib.import_module("transformers")
    options = {"local_files_only": True, "trust_remote_code": any(folder.glob("*.py"))}
    try:
        made.model = auto.AutoModel.from_pretrained(folder, **options)
        if made.get_transform() is None:
            made.img_processor = made.processor = auto.AutoImageProcessor.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError) as err:
        raise WeightsError(f"folder {folder} does not hold {model.repository} ({_first_line(err)})") from err
    made.num_prefix_tokens = 1 + int(getattr(made.model.config, "num_register_tokens", 0) or 0)
    return made


def _from_package(model: ZooModel, path: Path | None, token: str | None) -> Any:
    """The class does everything itself, with the hub's own settings."""
    if path is not None and model.name not in _TAKES_FILE:
        raise WeightsError(
            f"LazySlide's {model.name} takes no state dict; give its image encoder as a TorchScript or .pt2 file"
        )
    source = Source(model.name, model.repository, model.gated, (("*",),))
    if path is None and offline() and source.found() is None:
        raise source.missing("HF_HUB_OFFLINE forbids to fetch them")
    try:
        return _class_of(model)(model_path=None if path is None else str(path), token=token)
    except OSError as err:
        raise source.missing(f"its class could not fetch them ({_first_line(err)})") from err


def _first_line(err: Exception) -> str:
    return str(err).strip().partition("\n")[0]


_MAKE: dict[str, Callable[[ZooModel, Any, str | None], Any]] = {
    "state": _from_state,
    "timm": _from_timm,
    "dinov2": _from_dinov2,
    "transformers": _from_folder,
    "package": _from_package,
}
