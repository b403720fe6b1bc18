"""The fuzzer: 20,000 hostile inputs over every reader, and that it finds what it looks for."""

import io
import os
import pickle
import random
import signal
import struct
import time
import zipfile

import h5py
import numpy as np
import pytest
from fuzz.engine import search
from fuzz.mutate import mutate, mutator_of
from fuzz.mutate_archives import mutate_zip, zipped
from fuzz.targets import TARGETS, Target

from histoflow._errors import ReadError

INPUTS = {
    "genes": 4500,
    "vocabulary": 4500,
    "geojson": 3000,
    "manifest": 3000,
    "safetensors": 2200,
    "archive": 600,
    "pth": 600,
    "model": 400,
    "picture": 400,
    "protocol": 300,
    "visium": 120,
    "st": 160,
    "features": 80,
    "h5ad": 50,
    "hest_bench": 40,
    "zarr": 50,
}
TOTAL = 20_000


def test_every_reader_has_its_part_of_the_inputs():
    assert sum(INPUTS.values()) == TOTAL
    assert INPUTS.keys() == TARGETS.keys()


@pytest.mark.parametrize("reader", INPUTS)
def test_every_input_is_read_or_refused_by_an_error_of_ours(reader, tmp_path):
    result = search(TARGETS[reader], INPUTS[reader], seed=2026, keep=tmp_path)
    told = {str(path.parent): path.read_text() for path in tmp_path.rglob("finding.txt")}
    assert not result.findings, told
    assert result.inputs == INPUTS[reader] == result.read + result.refused
    assert min(result.read, result.refused, result.kept) > 0


def test_the_library_does_not_write_into_hdf5_whose_bytes_were_changed(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = np.arange(3)
    whole, opened, open_file = (tmp_path / "a.h5").read_bytes(), [], h5py.File
    monkeypatch.setattr("h5py.File", lambda *how: opened.append(how) or open_file(*how))
    mutator, damaged, rng = mutator_of("a.h5"), [], random.Random(0)
    for _ in range(40):
        n_opened, made = len(opened), mutator(whole, rng)
        damaged += [made] if len(opened) == n_opened and made != whole else []
    assert min(len(opened), len(damaged)) > 9
    opened.clear()
    for held in damaged * 3:
        mutator(held, rng)
    assert not opened


def one_seed():
    return [{"a.json": b'{"a": [1, 2, {"b": "c"}]}'}]


def target(read):
    return Target("tried", one_seed, read)


def refuse(folder):
    raise ReadError("this is refused, and it is said why at some length")


def crash(folder):
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(folder):
    while True:
        pass


def bomb(folder):
    np.zeros(1 << 31, dtype=np.uint8)


def leak(folder):
    (folder.parent.parent / "fuzz outside").write_text("x")
    (folder.parent.parent / "fuzz outside").unlink()


def unpickle(folder):
    pickle.loads(pickle.dumps(time.sleep))


def say_nothing(folder):
    raise ReadError("no")


@pytest.mark.parametrize(
    ("read", "finding"),
    [
        *((crash, "crash SIGSEGV"), (bomb, "MemoryError"), (leak, "forbidden: open"), (unpickle, "forbidden: pickle")),
        (say_nothing, "an error that tells nothing"),
    ],
)
def test_what_is_looked_for_is_found_and_kept(read, finding, tmp_path):
    result = search(target(read), 3, keep=tmp_path)
    assert [where for where in result.findings if where.startswith(finding)]
    assert result.inputs == 3
    assert list(tmp_path.rglob("case/a.json"))


def test_a_reader_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr("fuzz.child.MOST_SECONDS", 0.2)
    assert search(target(hang), 2).findings["hang"] == 2


def test_what_is_refused_is_counted_by_its_error():
    result = search(target(refuse), 20)
    assert (result.refused, result.refusals, result.findings) == (20, {"ReadError": 20}, {})


def test_the_same_seed_makes_the_same_inputs():
    seeds = list(TARGETS["manifest"].seeds())
    first, again = ([mutate(seeds[0], random.Random(i), seeds) for i in range(200)] for _ in range(2))
    assert first == again
    assert len({tuple(sorted(case.items())) for case in first}) > 100


def test_a_zip_that_points_far_outside_itself_is_still_changed():
    # A directory of 64-bit offsets, one of them beyond any file: reading it ends in OverflowError.
    whole = zipped([("a/data.pkl", b"x" * 64)])
    at = whole.index(b"PK\x01\x02")
    extra = struct.pack("<HHQ", 1, 8, 2**63 + 8)
    entry = bytearray(whole[at : at + 46])
    entry[30:32], entry[42:46] = struct.pack("<H", len(extra)), b"\xff" * 4
    end = bytearray(whole[-22:])
    end[12:16] = struct.pack("<I", len(entry) + 10 + len(extra))
    broken = whole[:at] + bytes(entry) + b"a/data.pkl" + extra + bytes(end)
    with zipfile.ZipFile(io.BytesIO(broken)) as archive, pytest.raises(OverflowError):
        archive.read("a/data.pkl")
    assert len({mutate_zip(broken, random.Random(number)) for number in range(20)}) > 10


def test_mutators_keep_the_format_most_of_the_time(tmp_path):
    case = next(iter(TARGETS["h5ad"].seeds()))
    opened = 0
    for number in range(60):
        (tmp_path / "m.h5").write_bytes(mutator_of("x.h5")(case["counts.h5ad"], random.Random(number)))
        try:
            with h5py.File(tmp_path / "m.h5"):
                opened += 1
        except OSError:
            continue
    assert 30 < opened < 60
