"""What the faults are brought into: each verb as a user calls it, on sections so small that it takes seconds."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch

import click
import numpy as np
import pandas as pd

GENES = ("TEX01", "COL01", "NIL01", "COL02", "TEX02")
OTHER_GENES = ("COL02", "TEX01", "NIL01")
SLIDE = "P2_C"
_FILES = ("slide", "counts", "spots")
_SIZE_UM, _RADIUS_UM = (960, 880), 400


@dataclass(frozen=True)
class Inputs:
    """What every run is given; nobody may change it."""

    folder: Path

    @property
    def manifest(self) -> Path:
        """Four small sections and a slide."""
        return self.folder / "toy" / "cohort.csv"

    def genes(self, which: str = "genes") -> Path:
        """A list of genes."""
        return self.folder / f"{which}.txt"

    @property
    def few(self) -> Path:
        """The smallest of the sections, and the slide."""
        return self.folder / "few.csv"

    @property
    def cache(self) -> Path:
        """A cache with the embeddings of all of them."""
        return self.folder / "embedded"

    @property
    def model(self) -> Path:
        """A small flow with intervals."""
        return self.folder / "model"


@dataclass(frozen=True)
class Scene:
    """A verb.

    Attributes
    ----------
    name
        As the table calls it.
    command
        Arguments of `histoflow`, for inputs and the folder of the run.
    older
        Arguments of a run with other options, whose result may lie there already; None where it has none.
    weight
        Points of it for each fault in a round: more of those that take less time.
    embedded
        Whether the embeddings are in the cache already.
    """

    name: str
    command: Callable[[Inputs, Path], list[str]]
    older: Callable[[Inputs, Path], list[str]] | None = None
    weight: int = 1
    embedded: bool = True


def write_inputs(folder: Path, run: Callable[[list[str], Path], None], scenes: Sequence[Scene]) -> Inputs:
    """Write what the scenes are given; `run` runs a command with its cache in a folder."""
    from histoflow.datasets import planted

    inputs = Inputs(folder)
    small = tuple(replace(plan, size_um=_SIZE_UM, radius_um=_RADIUS_UM) for plan in planted._PLANS)
    with patch.object(planted, "_PLANS", small):
        planted.write_toy(folder / "toy")
    inputs.genes().write_text("\n".join(GENES))
    inputs.genes("other").write_text("\n".join(OTHER_GENES))
    (folder / "served").mkdir()
    rng = np.random.default_rng(0)
    for name in _SERVED:
        (folder / "served" / name).write_bytes(rng.bytes(200_000))
    rows = pd.read_csv(inputs.manifest).set_index("section").loc[["P1_B", SLIDE], ["kind", *_FILES]]
    for column in _FILES:
        rows[column] = [folder / "toy" / cell if isinstance(cell, str) else "" for cell in rows[column]]
    rows.to_csv(inputs.few)
    run(_fit(inputs, folder), inputs.cache)
    for scene in scenes:
        if scene.embedded and scene.command is not _fit:
            run(scene.command(inputs, folder / "warm"), inputs.cache)
            shutil.rmtree(folder / "warm")
    return inputs


def _fit(inputs: Inputs, place: Path, which: str = "genes") -> list[str]:
    chosen = ["--model", "stflow", "--encoder", "color", "--panel", str(inputs.genes(which))]
    return ["fit", str(inputs.manifest), "--out", str(place / "model"), *chosen]


def _predict(ending: str, inputs: Inputs, place: Path, n_samples: int = 3) -> list[str]:
    where = [str(inputs.model), str(inputs.manifest), "--section", SLIDE]
    return ["predict", *where, "--out", str(place / "out" / f"p.{ending}"), "--samples", str(n_samples)]


def _evaluate(inputs: Inputs, place: Path) -> list[str]:
    chosen = ["--panel", str(inputs.genes()), "--models", "mean,color", "--encoder", "color", "--level", "off"]
    return ["evaluate", str(inputs.manifest), "--out", str(place / "out"), *chosen]


def _cohort(inputs: Inputs, place: Path) -> list[str]:
    options = ["--task", "embed", "--encoder", "color", "--retries", "0", "--out", str(place / "out")]
    return ["cohort", "run", str(inputs.few), *options]


def _embed(inputs: Inputs, place: Path) -> list[str]:
    return ["embed", str(inputs.manifest)]


def _download(inputs: Inputs, place: Path) -> list[str]:
    return ["download"]


SCENES = (
    Scene("embed", _embed, weight=2, embedded=False),
    Scene("fit", _fit, partial(_fit, which="other"), weight=5),
    Scene("predict h5ad", partial(_predict, "h5ad"), partial(_predict, "h5ad", n_samples=2), weight=6),
    Scene("predict zarr", partial(_predict, "zarr"), partial(_predict, "zarr", n_samples=2), weight=5),
    Scene("evaluate", _evaluate),
    Scene("cohort run", _cohort, weight=2, embedded=False),
    Scene("download", _download, weight=6, embedded=False),
)
ROUND = sum(scene.weight for scene in SCENES)


def make_small() -> None:
    """In a child: a flow of a few numbers, blocks of a few patches, and two verbs of Python as commands."""
    from histoflow.cli.root import cli
    from histoflow.models import Network, Training, recipes
    from histoflow.pl import figures
    from histoflow.pp import blocks

    network = Network(hidden_dim=8, pairwise_dim=8, n_layers=1, n_heads=2, n_components=4)
    training = Training(max_epochs=3, crops_per_section=1, n_members=2, n_searches=2)
    small = {"network": network, "training": training, "n_factors": 2}
    recipes.RECIPES["default"] = replace(recipes.RECIPES["default"], **small)
    blocks.BLOCK = 16
    figures._DPI = 20
    cli.add_command(embed_command)
    cli.add_command(download_command)


@click.command("embed")
@click.argument("manifest")
def embed_command(manifest: str) -> None:
    """Embed every section of a cohort."""
    import histoflow as hf

    hf.embed(hf.read_cohort(manifest).select(sections=["P1_B"]), "color")


@click.command("download")
def download_command() -> None:
    """Fetch a data set from a server of this machine."""
    from histoflow.datasets import remote

    remote.her2st(["C2"])


# Downloads

_SERVED = ("C2-counts", "C2-spots", "C2-slide")


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, ranges too, so that a download can go on."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with a file, or the rest of it."""
        body = (Path(self.directory) / self.path.lstrip("/")).read_bytes()
        tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.headers["If-Range"] == tag else 0
        if start >= len(body):
            self._answer(416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"})
            return
        part = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        self._answer(206 if start else 200, {"ETag": tag, "Content-Length": str(len(body) - start), **part})
        self.wfile.write(body[start:])

    def _answer(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def serve(folder: Path) -> tuple[str, int]:
    """Serve a folder from a process of its own, and give its address and number.

    Not from a thread: where a process forks, a lock that another thread holds is never released in the child.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    pid = os.fork()
    if pid == 0:
        server.serve_forever()
    server.socket.close()
    return f"http://127.0.0.1:{server.server_port}/", pid


def serve_from(url: str, folder: Path) -> None:
    """In a child: take the published data set from there, with the hashes that its files have."""
    from histoflow.datasets import remote
    from histoflow.datasets.remote import HER2ST

    known = HER2ST["C2"]
    files = {
        part: replace(file, path=served, sha256=hashlib.sha256((folder / served).read_bytes()).hexdigest(), begins=())
        for (part, file), served in zip(known.files.items(), _SERVED, strict=False)
    }
    here = replace(known, source=replace(known.source, base_url=url), files=files)
    remote.HER2ST = {"C2": here}
    remote._WAITS_S = (0.0,)
