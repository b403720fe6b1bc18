"""Mutators of containers: zip (weights of torch), safetensors, tar."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import tarfile
import warnings
import zipfile

from fuzz.values import BYTES, SIZES, TEXTS

_NAMES = ("../outside", "/outside", "a/../../outside", "..\\outside", ".", "..", "", "raw/../../outside", "x" * 300)
_PICKLES = (
    b"cposix\nsystem\n(S'touch outside'\ntR.",
    b"cbuiltins\neval\n(S'1'\ntR.",
    b"\x80\x02cbuiltins\nexec\nq\x00X\x04\x00\x00\x00passq\x01\x85q\x02Rq\x03.",
    b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    b"\x80\x02}q\x00.",
    b"\x80\x02]q\x00.",
    b"\x80\x02" + b"(" * 50_000 + b".",
    b"\x80\x02" + b"]" + b"h\x00a" * 10 + b".",
)


def _flip(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return rng.choice(BYTES)
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 6))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed[: rng.randrange(len(changed)) + 1] if rng.random() < 0.15 else changed)


def mutate_zip(data: bytes, rng: random.Random) -> bytes:
    """Change, drop, repeat and rename members; put pickles that run something in their place; else bytes."""
    if rng.random() < 0.3:
        return _flip(data, rng)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    except Exception:  # noqa: BLE001  a damaged zip may fail in any way, and is then changed as bytes
        return _flip(data, rng)
    if not members:
        return _flip(data, rng)
    place = rng.randrange(len(members))
    name, held = members[place]
    what = rng.randrange(6)
    if what == 0:
        del members[place]
    elif what == 1:
        members.append((rng.choice((name, rng.choice(_NAMES))), held))
    elif what == 2:
        members[place] = (
            name.rpartition("/")[0] + "/" + rng.choice(("data.pkl", "version", "data/0", "code/a.py", "x")),
            held,
        )
    elif what == 3 and any(n.endswith("data.pkl") for n, _ in members):
        members = [(n, rng.choice(_PICKLES) if n.endswith("data.pkl") else h) for n, h in members]
    else:
        members[place] = (name, _flip(held, rng))
    return zipped(members)


def zipped(members: list[tuple[str, bytes]]) -> bytes:
    """A zip of members, stored as torch stores them."""
    made = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(made, "w") as archive:
        warnings.simplefilter("ignore")  # names that come twice
        for name, held in members:
            archive.writestr(zipfile.ZipInfo(name or "x"), held)
    return made.getvalue()


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Change the header's entries, its length, or bytes."""
    from fuzz.mutate import mutated_value

    if rng.random() < 0.35 or len(data) < 8:
        return _flip(data, rng)
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.1:
        return rng.choice(SIZES).to_bytes(8, "little") + data[8:]
    try:
        header = json.loads(data[8 : 8 + length])
        body = data[8 + length :]
        changed = json.dumps(_other_entry(header, rng) if rng.random() < 0.5 else mutated_value(header, rng))
    except (ValueError, OverflowError, MemoryError, RecursionError):
        return _flip(data, rng)
    text = changed.encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + body


def _other_entry(header: object, rng: random.Random) -> object:
    """An array under another name, of another shape of the same size, or of another type."""
    if not isinstance(header, dict) or not header:
        return header
    made = copy.deepcopy(header)
    name = rng.choice(sorted(made))
    entry = made[name]
    what = rng.randrange(4)
    if what == 0 and isinstance(entry, dict) and isinstance(entry.get("shape"), list):
        entry["shape"] = rng.choice(([1, *entry["shape"]], entry["shape"][::-1], [*entry["shape"], 1], [0], []))
    elif what == 1 and isinstance(entry, dict):
        entry["dtype"] = rng.choice(("F32", "F64", "I64", "U8", "BOOL", "F16", "BF16", "I32", "F8_E4M3", "X"))
    elif what == 2:
        made[rng.choice((name + "x", "", "a.b", rng.choice(TEXTS)))] = made.pop(name)
    else:
        made[rng.choice(sorted(made))] = entry
    return made


def mutate_tar(data: bytes, rng: random.Random) -> bytes:
    """Members that lead outside, links, devices, sizes that are not there; else bytes, packed or not."""
    if rng.random() < 0.15:
        return _flip(data, rng)
    try:
        inside = gzip.decompress(data)
        with tarfile.open(fileobj=io.BytesIO(inside)) as tar:
            members = [(m, tar.extractfile(m).read() if m.isfile() else b"") for m in tar.getmembers()]
    except Exception:  # noqa: BLE001  a damaged archive may fail in any way, and is then changed as bytes
        return _flip(data, rng)
    if rng.random() < 0.25 or not members:
        return gzip.compress(_flip(inside, rng), compresslevel=1, mtime=0)
    place = rng.randrange(len(members))
    member, held = members[place]
    members[place] = _other_member(copy.copy(member), held, rng)
    if rng.random() < 0.1:
        del members[rng.randrange(len(members))]
    return tarred(members)


def _other_member(member: tarfile.TarInfo, held: bytes, rng: random.Random) -> tuple[tarfile.TarInfo, bytes]:
    what = rng.randrange(6)
    if what == 0:
        member.name = rng.choice(_NAMES)
    elif what == 1:
        member.name = "spatial/" + rng.choice(_NAMES)
    elif what == 2:
        member.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE))
        member.linkname = rng.choice(("/etc/passwd", "../../outside", "spatial/a", ".", ""))
        member.size, held = 0, b""
    elif what == 3:
        member.size = min(rng.choice(SIZES), 8**11 - 1)
    elif what == 4:
        member.mode = rng.choice((0, 0o4777, 0o777, 0o111))
        member.uid = rng.choice((0, 12345))
    else:
        held = _flip(held, rng)
        member.size = len(held)
    return member, held


def tarred(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """A gzipped tar whose headers say what they say, whatever follows them."""
    made = io.BytesIO()
    for member, held in members:
        made.write(member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        made.write(held + b"\0" * (-len(held) % 512))
    made.write(b"\0" * 1024)
    return gzip.compress(made.getvalue(), compresslevel=1, mtime=0)
