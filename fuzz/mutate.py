"""Mutators: one for each format, which mostly keep it, so that what lies behind the parser is met too."""

from __future__ import annotations

import copy
import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable

from fuzz.mutate_archives import mutate_safetensors, mutate_tar, mutate_zip
from fuzz.mutate_hdf5 import mutate_hdf5
from fuzz.values import BYTES, FLOATS, NUMBERS, SIZES, TEXTS

Case = dict[str, bytes]
"""An input: files by path relative to its folder."""
LARGEST = 1 << 20
"""Inputs do not grow beyond this, so that no run is about the speed of the disk."""


def mutate(case: Case, rng: random.Random, others: list[Case] | None = None) -> Case:
    """A changed copy: one to four changes of single files, now and then of which files there are."""
    made = dict(case)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        if not made or rng.random() < 0.04:
            made = _other_files(made, rng, others or [case])
            continue
        name = rng.choice(sorted(made))
        made[name] = mutator_of(name)(made[name], rng)[:LARGEST]
    return made


def _other_files(case: Case, rng: random.Random, others: list[Case]) -> Case:
    """Drop a file, empty it, copy it over another, or take one of another case."""
    made = dict(case)
    if not made:
        return dict(rng.choice(others))
    name, other = (rng.choice(sorted(made)) for _ in range(2))
    what = rng.randrange(4)
    if what == 0:
        del made[name]
    elif what == 1:
        made[name] = b""
    elif what == 2:
        made[name] = made[other]
    else:
        donor = rng.choice(others)
        made |= {name: donor[name]} if name in donor else {}
    return made


def mutator_of(name: str) -> Callable[[bytes, random.Random], bytes]:
    """The mutator of a file, by its ending."""
    for endings, chosen in _MUTATORS:
        if name.endswith(endings):
            return chosen
    return mutate_bytes


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut, repeat, insert, write sizes: what knows no format."""
    if not data:
        return rng.choice(BYTES)
    here, there = sorted(rng.randrange(len(data)) for _ in range(2))
    what = rng.randrange(8)
    if what == 0:
        return data[:here]
    if what == 1:
        return data[:here] + data[there:]
    if what == 2:
        return data[:there] + data[here:]
    if what == 3:
        return data[:here] + rng.choice(BYTES) + data[here:]
    if what == 4:
        size = rng.choice(SIZES).to_bytes(8, rng.choice(("little", "big")))[: rng.choice((2, 4, 8))]
        return data[:here] + size + data[here + len(size) :]
    if what == 5:
        return data[:here] + rng.randbytes(rng.randint(1, 8)) + data[here:]
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


# tables


def mutate_table(data: bytes, rng: random.Random) -> bytes:
    """Change cells, rows and columns of a table of text; now and then its bytes."""
    if rng.random() < 0.15:
        return mutate_bytes(data, rng)
    text = data.decode("utf-8", "surrogateescape")
    separator = "\t" if text.count("\t") > text.count(",") else ","
    rows = [line.split(separator) for line in text.splitlines()] or [[""]]
    rng.choice(_TABLE)(rows, rng)
    if rng.random() < 0.03:
        separator = rng.choice((",", "\t", ";", " "))
    ending = "\n" if rng.random() < 0.95 else rng.choice(("\r\n", "\r", ""))
    return "".join(separator.join(row) + ending for row in rows).encode("utf-8", "surrogateescape")


def _cell(rows: list[list[str]], rng: random.Random) -> None:
    row = rng.choice(rows)
    if row:
        row[rng.randrange(len(row))] = _value(rng)


def _column_of_values(rows: list[list[str]], rng: random.Random) -> None:
    column, value = rng.randrange(max(map(len, rows), default=0) or 1), _value(rng)
    for row in rows[rng.randrange(2) :]:
        if column < len(row):
            row[column] = value


def _swap_columns(rows: list[list[str]], rng: random.Random) -> None:
    wide = max(map(len, rows))
    a, b = (rng.randrange(wide or 1) for _ in range(2))
    for row in rows:
        if max(a, b) < len(row):
            row[a], row[b] = row[b], row[a]


def _drop_column(rows: list[list[str]], rng: random.Random) -> None:
    column = rng.randrange(max(map(len, rows)) or 1)
    for row in rows[rng.choice((0, 0, 1)) :]:
        del row[column : column + 1]


def _repeat_column(rows: list[list[str]], rng: random.Random) -> None:
    column = rng.randrange(max(map(len, rows)) or 1)
    for row in rows[rng.choice((0, 0, 1)) :]:
        row[column:column] = row[column : column + 1]


def _drop_row(rows: list[list[str]], rng: random.Random) -> None:
    del rows[rng.randrange(len(rows))]


def _repeat_row(rows: list[list[str]], rng: random.Random) -> None:
    row = rng.choice(rows)
    rows[:] = rows + [list(row) for _ in range(rng.choice((1, 1, 2, 300)))]


def _no_rows(rows: list[list[str]], rng: random.Random) -> None:
    del rows[rng.randrange(2) :]


def _shuffle_rows(rows: list[list[str]], rng: random.Random) -> None:
    rng.shuffle(rows)


def _copy_cell(rows: list[list[str]], rng: random.Random) -> None:
    one, other = rng.choice(rows), rng.choice(rows)
    if one and other:
        one[rng.randrange(len(one))] = rng.choice(other)


def _quote(rows: list[list[str]], rng: random.Random) -> None:
    row = rng.choice(rows)
    if row:
        column = rng.randrange(len(row))
        row[column] = rng.choice(('"{}"', '"{}', '{}"', '""{}')).replace("{}", row[column])


_TABLE: tuple[Callable[[list[list[str]], random.Random], None], ...] = (
    *(_cell, _cell, _cell, _copy_cell, _column_of_values, _swap_columns, _drop_column, _repeat_column),
    *(_drop_row, _repeat_row, _no_rows, _shuffle_rows, _quote),
)


def _value(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(NUMBERS)
    return str(rng.randint(-5, 5)) if rng.random() < 0.3 else rng.choice(TEXTS)


def mutate_gzipped_table(data: bytes, rng: random.Random) -> bytes:
    """As `mutate_table`, of what is inside."""
    try:
        inside = gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return mutate_bytes(data, rng)
    if rng.random() < 0.2:
        return mutate_bytes(data, rng)
    return gzip.compress(mutate_table(inside, rng), compresslevel=1, mtime=0)


# JSON


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Change values, keys and nesting; now and then the text."""
    if rng.random() < 0.15:
        return mutate_bytes(data, rng)
    if rng.random() < 0.01:
        return rng.choice((b"[" * 60_000, b'{"a":' * 60_000, b"[" * 60_000 + b"]" * 60_000))
    try:
        value = json.loads(data)
        return json.dumps(mutated_value(value, rng)).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng)


def mutated_value(value: object, rng: random.Random) -> object:
    """A JSON value with one place changed."""
    root = [copy.deepcopy(value)]
    holder, key = rng.choice(_places(root))
    what = rng.randrange(8)
    held = holder[key]
    if what == 0 and holder is not root:
        del holder[key]
    elif what == 1 and isinstance(held, dict) and held:
        old = rng.choice(sorted(held))
        held[rng.choice((rng.choice(TEXTS), *held))] = held.pop(old)
    elif what == 2 and isinstance(held, list) and held:
        rng.choice((held.reverse, held.clear, lambda: held.extend(held[:50]), lambda: held.append(held[0])))()
    elif what == 3:
        holder[key] = rng.choice(([held], {"a": held}, {}, []))
    elif what == 4:
        other_holder, other = rng.choice(_places(root))
        holder[key] = copy.deepcopy(other_holder[other])
    else:
        holder[key] = _json_value(rng)
    return root[0] if root else None


def _places(value: object) -> list[tuple]:
    """Everything that can be replaced, as holder and key."""
    found, waiting = [], [value]
    while waiting:
        holder = waiting.pop()
        keys = range(len(holder)) if isinstance(holder, list) else holder
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    return found


def _json_value(rng: random.Random) -> object:
    choice = rng.randrange(6)
    if choice == 0:
        return rng.choice(TEXTS)
    if choice == 1:
        return rng.choice(FLOATS)
    if choice == 2:
        return rng.choice(SIZES) * rng.choice((1, -1))
    if choice == 3:
        return 10 ** rng.choice((20, 400))
    return rng.choice((None, True, False, [], {}, [[]], [None], [1, 2, 3], "1", 1))


# pictures


def mutate_png(data: bytes, rng: random.Random) -> bytes:
    """Sizes in the header with a checksum that is right; else bytes."""
    if rng.random() < 0.4 and data[12:16] == b"IHDR" and len(data) > 33:
        header = bytearray(data[16:29])
        where = rng.choice((0, 4))
        header[where : where + 4] = struct.pack(">I", rng.choice(SIZES) & 0xFFFFFFFF)
        if rng.random() < 0.3:
            header[8 + rng.randrange(5)] = rng.randrange(20)
        checksum = struct.pack(">I", zlib.crc32(b"IHDR" + header))
        return data[:16] + bytes(header) + checksum + data[33:]
    return mutate_bytes(data, rng)


# lists


def mutate_lines(data: bytes, rng: random.Random) -> bytes:
    """A list with one name a line."""
    lines = data.split(b"\n")
    what = rng.randrange(5)
    if what == 0:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(TEXTS).encode("utf-8", "surrogatepass"))
    elif what == 1:
        lines.append(rng.choice(lines))
    elif what == 2:
        del lines[rng.randrange(len(lines))]
    else:
        return mutate_bytes(data, rng)
    return b"\n".join(lines)


_MUTATORS: tuple[tuple[tuple[str, ...], Callable[[bytes, random.Random], bytes]], ...] = (
    ((".tar.gz", ".tgz"), mutate_tar),
    ((".mtx.gz", ".tsv.gz", ".csv.gz"), mutate_gzipped_table),
    ((".csv", ".tsv", ".mtx"), mutate_table),
    ((".json", ".geojson"), mutate_json),
    ((".h5", ".h5ad"), mutate_hdf5),
    ((".safetensors",), mutate_safetensors),
    ((".pth", ".pt", ".npz"), mutate_zip),
    ((".png",), mutate_png),
    ((".txt",), mutate_lines),
)
