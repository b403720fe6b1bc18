"""Files of weights: what kind they are, read without running what is pickled in them."""

from __future__ import annotations

import hashlib
import io
import pickle
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from histoflow._errors import WeightsError
from histoflow._files import file_hash, value_hash

Kind = Literal["safetensors", "state dict", "TorchScript", "torch.export"]

_PREFERRED = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = {".safetensors", ".bin", ".pth", ".pt", ".pt2", ".ckpt"}
_NESTED = ("state_dict", "model_state_dict", "model", "teacher")
_WRAPPED = ("module.", "_orig_mod.")
# What torch's reader raises on bytes that are no checkpoint, beside its own errors.
_DAMAGED = (
    *(pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, AssertionError, struct.error, zlib.error, zipfile.BadZipFile),
    MemoryError,  # a length in a pickle for which no room can be had; none was taken
)
_LONGEST_TEXT = 10_000
_MOST_PICKLED = 1 << 28
_N_OLD_PICKLES = 5
"""In a checkpoint that is no zip: magic number, version, machine, objects, keys of the tensors behind them."""
_WANTED = "give a .safetensors file, a state dict saved by torch, a TorchScript or a torch.export file"


def weights_file(path: str | Path) -> Path:
    """The file of weights that `path` is, or the one in the folder that `path` is.

    Raises
    ------
    WeightsError
        If there is nothing at `path`, or a folder that does not hold exactly one candidate.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(f"weights {path} do not exist; {_WANTED}, or a folder that holds one")
    inside = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    preferred = [path / name for name in _PREFERRED if path / name in inside]
    if len(inside) != 1 and not preferred:
        raise WeightsError(f"folder {path} holds {len(inside)} files of weights; name the one that is meant")
    return (preferred or inside)[0]


def kind_of(path: Path) -> Kind:
    """What a file of weights is, told by its content.

    Raises
    ------
    WeightsError
        If it cannot be read.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _kind_of_archive(archive.namelist())
        with path.open("rb") as handle:
            head = handle.read(9)
    except _DAMAGED as err:
        raise WeightsError(f"weights {path} cannot be read ({err}); {_WANTED}") from err
    return "safetensors" if head[8:] == b"{" else "state dict"


def _kind_of_archive(names: list[str]) -> Kind:
    inner = [name.split("/", 1)[-1] for name in names]
    if any(name.startswith("code/") for name in inner):
        return "TorchScript"
    exported = {"archive_format", "serialized_exported_program.json"}
    return "torch.export" if exported & {*inner, *names} else "state dict"


def is_program(path: Path) -> bool:
    """Whether a file holds a network that runs by itself, not weights alone."""
    return kind_of(path) in ("TorchScript", "torch.export")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a network by name; nothing in the file is run.

    Parameters
    ----------
    path
        A safetensors file, or a state dict saved by torch, plain or under a usual key such as ``"state_dict"``.

    Returns
    -------
    Tensors by parameter name, without the prefixes that parallel or compiled training leaves.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, holds other objects than tensors, or a program.
    """
    path = weights_file(path)
    kind = kind_of(path)
    if kind in ("TorchScript", "torch.export"):
        raise WeightsError(f"weights {path} are a {kind} program, but a state dict is wanted here")
    try:
        read = load_file(path) if kind == "safetensors" else _load_checkpoint(path)
    except (SafetensorError, *_DAMAGED) as err:
        told = str(err).strip().partition("\n")[0]
        raise WeightsError(f"weights {path} cannot be read ({told}); {_WANTED}") from err
    return _tensors(read, path)


def _load_checkpoint(path: Path) -> Any:
    with _pickles(path) as opened:
        for stream, n_pickles in opened:
            for _ in range(n_pickles):
                _check_texts(stream, path)
    return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def _pickles(path: Path) -> Iterator[Iterator[tuple[IO[bytes], int]]]:
    """What is pickled in a checkpoint, each as a stream with how many pickles follow one another there."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as handle:
            yield iter([(handle, _N_OLD_PICKLES)])
        return
    with zipfile.ZipFile(path) as archive:
        members = [one for one in archive.infolist() if one.filename.endswith("data.pkl")]
        if any(one.file_size > _MOST_PICKLED for one in members):
            raise ValueError(f"more than {_MOST_PICKLED} bytes beside its tensors")
        yield ((io.BytesIO(archive.read(one)), 1) for one in members)


def _check_texts(stream: IO[bytes], path: Path) -> None:
    """Refuse texts longer than any name: torch searches its error messages, which repeat them, in quadratic time."""
    for _, held, _ in pickletools.genops(stream):
        if isinstance(held, str | bytes | bytearray) and len(held) > _LONGEST_TEXT:
            raise WeightsError(
                f"weights {path} hold a text of {len(held)} characters where names of parameters are wanted; {_WANTED}"
            )


def _tensors(read: Any, path: Path) -> dict[str, Tensor]:
    for key in _NESTED:
        if isinstance(read, Mapping) and isinstance(read.get(key), Mapping):
            read = read[key]
    if not isinstance(read, Mapping) or not read or not all(isinstance(value, Tensor) for value in read.values()):
        raise WeightsError(f"weights {path} hold {type(read).__name__} rather than tensors by name; {_WANTED}")
    return {_unwrapped(str(name)): value for name, value in read.items()}


def _unwrapped(name: str) -> str:
    for prefix in _WRAPPED:
        name = name.removeprefix(prefix)
    return name


def load_weights(module: nn.Module, path: str | Path) -> nn.Module:
    """Load a file of weights into a module, every name in its place.

    Parameters
    ----------
    module
        Gets the weights, in place.
    path
        As for `read_state`.

    Returns
    -------
    The same module.

    Raises
    ------
    WeightsError
        If the file cannot be read, or names or shapes differ.
    """
    fit_state(module, read_state(path), f"weights {path}")
    return module


def fit_state(module: nn.Module, state: Mapping[str, Tensor], what: str, *, assign: bool = False) -> None:
    """Load a state dict into a module, every name in its place; `assign` takes the tensors themselves, not copies.

    Raises
    ------
    WeightsError
        If names or shapes differ.
    """
    try:
        module.load_state_dict(state, assign=assign)
    except RuntimeError as err:
        told = " ".join(str(err).split())[:300]
        raise WeightsError(f"{what} do not fit the network ({told} …); give the weights of this very network") from err


def load_program(path: Path) -> nn.Module:
    """Load a network that runs by itself.

    Raises
    ------
    WeightsError
        If the file holds weights alone or is damaged.
    """
    kind = kind_of(path)
    if kind not in ("TorchScript", "torch.export"):
        raise WeightsError(
            f"weights {path} are a {kind}, which needs a network: name a timm or LazySlide model with it"
        )
    try:
        return _load_script(path) if kind == "TorchScript" else _load_export(path)
    except (RuntimeError, ValueError, KeyError, OSError) as err:
        told = str(err).strip().partition("\n")[0]
        raise WeightsError(f"weights {path} are a {kind} file that cannot be loaded ({told})") from err


def _load_script(path: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        module: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    return module.eval()


def _load_export(path: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        program = torch.export.load(str(path))
    module: nn.Module = program.module()
    shape = next(
        node.meta["val"].shape for node in program.graph.nodes if node.name in program.graph_signature.user_inputs
    )
    return module if not isinstance(shape[0], int) else _FixedBatch(module, shape[0])


class _FixedBatch(nn.Module):
    """A program that was exported for batches of one size: the last batch is filled up with its last patch."""

    def __init__(self, module: nn.Module, size: int) -> None:
        super().__init__()
        self.module, self.size = module, size

    def forward(self, images: Tensor) -> Tensor:
        missing = -len(images) % self.size
        filled = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
        return torch.cat([self.module(part) for part in torch.split(filled, self.size)])[: len(images)]


def state_hash(module: nn.Module) -> str:
    """SHA-256 of a module's state dict: names, shapes, types and values, as 64 hex digits."""
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    return value_hash({name: [str(v.dtype), list(v.shape), _bytes_hash(v)] for name, v in sorted(state.items())})


def _bytes_hash(value: Tensor) -> str:
    return hashlib.sha256(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()


def path_hash(path: Path) -> str:
    """SHA-256 of a file of weights, of the one that is taken from a folder, or of all parts in it, as 64 hex digits."""
    if path.is_file():
        return file_hash(path)
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if len(files) == 1 or any(file.name in _PREFERRED for file in files):
        return file_hash(weights_file(path))
    return value_hash({file.name: file_hash(file) for file in files})
