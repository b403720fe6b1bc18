"""Data on request: what lies here is used, a cut download goes on, a wrong file is refused, nothing lands elsewhere."""

import hashlib
import io
import json
import logging
import shutil
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histoflow._errors import MissingDependencyError, OptionError, OutputError, ReadError, ScaleWarning
from histoflow.datasets import catalogue, remote
from histoflow.datasets.arrays import SpotArray, st_array, visium_array
from histoflow.datasets.formats import write_jpg, write_space_ranger, write_st_tables, write_tiff
from histoflow.datasets.remote import breast, download_breast, her2st, load_breast
from histoflow.io import read_visium

pooch = pytest.importorskip("pooch", reason="downloading needs histoflow[slides]")
pytest.importorskip("imagecodecs", reason="writing slides needs histoflow[slides]")

FACTS = ["checksums.json", "source.json"]
MPP, SIZE_UM = 4.0, (2400, 2200)
BODY = np.random.default_rng(7).bytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@dataclass
class Request:
    """What was asked of the server, and how many bytes of content it sent."""

    path: str
    range: str | None
    if_range: str | None
    sent: int = 0


@dataclass
class Shelf:
    """What the server has, how it behaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    """Bytes after which each of the next answers breaks off."""
    chunked: bool = False
    knows_ranges: bool = True
    tag: str = '"{}"'
    codes: list[int] = field(default_factory=list)
    """Codes with which each of the next requests is refused."""
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    def asked(self, ending=""):
        return [request for request in self.requests if request.path.endswith(ending)]


class Handler(BaseHTTPRequestHandler):
    """A server of one shelf, as slow and unreliable as the shelf says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        shelf: Shelf = self.server.shelf
        asked = Request(self.path, self.headers["Range"], self.headers["If-Range"])
        shelf.requests.append(asked)
        body = shelf.files.get(self.path.lstrip("/"))
        code = shelf.codes.pop(0) if shelf.codes else None
        if body is None or code is not None:
            return self.answer(code or 404, {"Content-Length": "0"})
        tag = shelf.tag.format(hashlib.sha256(body).hexdigest()[:16])
        start = 0
        if asked.range and shelf.knows_ranges and asked.if_range == tag:
            start = int(asked.range.removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(body):
            return self.answer(416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"})
        headers = {"ETag": tag} if tag else {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        headers |= {"Transfer-Encoding": "chunked"} if shelf.chunked else {"Content-Length": str(len(body) - start)}
        self.answer(206 if start else 200, headers)
        self.send(body[start:], asked, shelf.cuts.pop(0) if shelf.cuts else None)

    def answer(self, code, headers):
        self.send_response(code)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, body, asked, cut):
        for at in range(0, len(body[:cut]), 5000):
            piece = body[:cut][at : at + 5000]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self.server.shelf.chunked else piece)
            self.wfile.flush()
            asked.sent += len(piece)
        if self.server.shelf.chunked and cut is None:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that has gone is no news."""


@pytest.fixture
def shelf(monkeypatch):
    monkeypatch.delenv("HISTOFLOW_DATA", raising=False)
    monkeypatch.setattr(remote, "_WAITS_S", (0.0, 0.0))
    server = Server(("127.0.0.1", 0), Handler)
    server.shelf = Shelf(url=f"http://127.0.0.1:{server.server_port}/")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.shelf
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def file(shelf):
    """One file on the shelf, without a section around it."""
    shelf.files["file.bin"] = BODY
    return shelf


def fetch(shelf, folder, expected=SHA256, begins=()):
    return remote._fetch(f"{shelf.url}file.bin", folder / "file.bin", expected, begins)


def left_over(folder):
    return sorted(path.name for path in folder.iterdir())


def tissue(shift_um):
    """A purple ellipse on pale glass at `MPP`, and which points in µm lie well within it."""
    centre, radii = np.array([1150 + shift_um, 1100]), np.array([800, 700])

    def within(xy_um, shrink=1.0):
        return (((xy_um - centre) / (radii * shrink)) ** 2).sum(axis=-1) < 1

    width, height = (int(side / MPP) for side in SIZE_UM)
    y, x = np.indices((height, width))
    picture = np.where(within(np.stack([x, y], axis=-1) * MPP)[..., None], [150, 90, 160], [240, 236, 242])
    noise = np.random.default_rng(0).integers(-8, 9, (height, width, 1))
    return (picture + noise).astype(np.uint8), within


def counts_of(spots: SpotArray, rng):
    return pd.DataFrame(rng.poisson(3.0, (len(spots.index), 3)), columns=["KRT8", "IGKC", "MT-CO1"])


def st_files(folder, shift_um):
    """Slide, counts and spots of an invented legacy ST section."""
    rng = np.random.default_rng(1)
    picture, within = tissue(shift_um)
    spots = st_array(SIZE_UM, rng)
    spots = spots[within(spots.xy_um, 0.9)]
    write_st_tables(folder, spots, counts_of(spots, rng), mpp=MPP)
    write_jpg(folder / "HE.jpg", picture)
    names = {"counts": "counts.tsv.gz", "spots": "spots_selection.tsv", "slide": "HE.jpg"}
    return {part: (folder / name).read_bytes() for part, name in names.items()}


def visium_files(folder, shift_um):
    """Counts, archive of ``spatial/`` and slide of an invented Visium section."""
    rng = np.random.default_rng(2)
    picture, within = tissue(shift_um)
    spots = visium_array(SIZE_UM)
    on = within(spots.xy_um, 0.9)
    write_space_ranger(
        folder / "outs", picture, spots, on_tissue=on, counts=counts_of(spots[on], rng), mpp=MPP, rng=rng
    )
    write_tiff(folder / "HE.tif", picture, MPP)
    with tarfile.open(folder / "spatial.tar.gz", "w:gz") as tar:
        tar.add(folder / "outs" / "spatial", "spatial")
    names = {
        "counts": "outs/filtered_feature_bc_matrix.h5",
        "spatial": "spatial.tar.gz",
        "slide": "HE.tif",
    }
    return {part: (folder / name).read_bytes() for part, name in names.items()}


@cache
def invented(kind: str, shift_um: int, folder: Path):
    place = folder / f"{kind}{shift_um}"
    place.mkdir()
    return {"st": st_files, "visium": visium_files}[kind](place, shift_um)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    return tmp_path_factory.mktemp("workshop")


def publish(shelf, entry, contents, *, hashed):
    """Put a section on the shelf, and give its entry with this server and with these hashes."""
    files = {}
    for part, content in contents.items():
        sha256 = hashlib.sha256(content).hexdigest() if hashed else None
        files[part] = replace(entry.files[part], sha256=sha256)
        shelf.files[files[part].path] = content
    return replace(entry, source=replace(entry.source, base_url=shelf.url), files=files)


@pytest.fixture
def tumour(shelf, workshop, monkeypatch):
    """Two invented sections published as C2 and C3."""
    contents = {"C2": invented("st", 0, workshop), "C3": invented("st", 90, workshop)}
    entries = {name: publish(shelf, catalogue.HER2ST[name], of, hashed=True) for name, of in contents.items()}
    monkeypatch.setattr(remote, "HER2ST", entries)
    return shelf


@pytest.fixture
def block(shelf, workshop, monkeypatch):
    """Two invented Visium sections published as sections 1 and 2."""
    contents = {1: invented("visium", 0, workshop), 2: invented("visium", 90, workshop)}
    entries = {n: publish(shelf, catalogue.BREAST[n], of, hashed=False) for n, of in contents.items()}
    monkeypatch.setattr(remote, "BREAST", entries)
    return shelf


# --- the downloader


def test_a_file_that_arrives_in_chunks_without_a_size_is_whole(file, tmp_path):
    file.chunked = True
    assert fetch(file, tmp_path) == SHA256
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert left_over(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("chunked", [False, True])
def test_after_a_cut_the_rest_is_asked_for_and_nothing_is_sent_twice(file, tmp_path, chunked, caplog):
    caplog.set_level(logging.INFO, "histoflow")
    file.cuts, file.chunked = [200_000], chunked
    assert fetch(file, tmp_path) == SHA256
    first, second = file.requests
    assert (first.range, first.sent) == (None, 200_000)
    start = int(second.range.removeprefix("bytes=").removesuffix("-"))
    # What the last block held when a chunked answer broke off is lost with it.
    assert start == 200_000 if not chunked else 0 < start <= 200_000
    assert second.if_range == f'"{SHA256[:16]}"'
    assert second.sent == len(BODY) - start
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert left_over(tmp_path) == ["file.bin"]
    assert f"after {start} bytes; trying again in 0 s" in caplog.text


def test_a_later_call_goes_on_where_the_last_one_gave_up(file, tmp_path):
    file.cuts = [100_000, 0, 0, 0]
    with pytest.raises(ReadError, match=r"file\.bin \(the connection was cut\); 100000 bytes are kept"):
        fetch(file, tmp_path)
    assert left_over(tmp_path) == [".tmp-file.bin.json", ".tmp-file.bin.part"]
    fetch(file, tmp_path)
    assert file.requests[-1].range == "bytes=100000-"
    assert sum(request.sent for request in file.requests) == len(BODY)
    assert left_over(tmp_path) == ["file.bin"]


def test_tries_are_counted_from_the_last_progress(file, tmp_path):
    file.cuts = [50_000] * 5
    assert fetch(file, tmp_path) == SHA256
    assert [request.sent for request in file.requests] == [50_000] * 6


@pytest.mark.parametrize("behaviour", [{"knows_ranges": False}, {"tag": 'W/"{}"'}, {"tag": ""}])
def test_a_server_that_cannot_go_on_sends_the_whole_file_again(file, tmp_path, behaviour):
    file.cuts = [200_000]
    for name, value in behaviour.items():
        setattr(file, name, value)
    assert fetch(file, tmp_path) == SHA256
    assert [request.sent for request in file.requests] == [200_000, len(BODY)]
    assert (file.requests[1].range is None) == ("tag" in behaviour)


def test_a_file_that_changed_in_between_comes_from_its_beginning(file, tmp_path):
    file.files["file.bin"] = BODY[::-1]
    file.cuts = [100_000, 0, 0]
    with pytest.raises(ReadError, match="100000 bytes are kept"):
        fetch(file, tmp_path)
    file.files["file.bin"] = BODY
    assert fetch(file, tmp_path) == SHA256
    assert file.requests[-1].range == "bytes=100000-"
    assert file.requests[-1].sent == len(BODY)


@pytest.mark.parametrize(("kept", "sent"), [(BODY, 0), (BODY + b"more", len(BODY))], ids=["whole", "too long"])
def test_an_unfinished_file_with_nothing_missing_is_taken_or_begun_anew(file, tmp_path, kept, sent):
    (tmp_path / ".tmp-file.bin.part").write_bytes(kept)
    (tmp_path / ".tmp-file.bin.json").write_text(json.dumps({"validator": f'"{SHA256[:16]}"'}))
    assert fetch(file, tmp_path) == SHA256
    assert sum(request.sent for request in file.requests) == sent
    assert left_over(tmp_path) == ["file.bin"]


def test_a_wrong_file_is_named_with_both_hashes_and_leaves_nothing(file, tmp_path):
    file.files["file.bin"] = b"another one"
    got = hashlib.sha256(b"another one").hexdigest()
    with pytest.raises(ReadError, match=rf"/file\.bin is not .* expected {SHA256}, got {got}; nothing was kept\. Try"):
        fetch(file, tmp_path)
    assert left_over(tmp_path) == []
    file.files["file.bin"] = BODY
    assert fetch(file, tmp_path) == SHA256


def test_a_page_in_place_of_a_file_is_refused_and_leaves_nothing(file, tmp_path):
    file.files["file.bin"] = b"<html>Please log in</html>"
    with pytest.raises(ReadError, match=r"begins with b'<html>Pl', which is no \.bin; .* login page"):
        fetch(file, tmp_path, None, (b"\x89HDF\r\n\x1a\n",))
    assert left_over(tmp_path) == []


def test_a_file_that_is_not_there_is_asked_for_once(shelf, tmp_path):
    with pytest.raises(ReadError, match=r"answers 404 .* for http://.*/file\.bin; the file may have moved: copy it to"):
        fetch(shelf, tmp_path)
    assert len(shelf.requests) == 1
    assert left_over(tmp_path) == []


def test_a_server_that_is_busy_is_asked_again(file, tmp_path):
    file.codes = [503, 429]
    assert fetch(file, tmp_path) == SHA256
    assert len(file.requests) == 3


def test_without_a_connection_the_error_says_what_to_do(file, tmp_path):
    with pytest.raises(ReadError) as caught:
        remote._fetch("http://127.0.0.1:9/file.bin", tmp_path / "file.bin", SHA256, ())
    assert "cannot fetch http://127.0.0.1:9/file.bin (" in str(caught.value)
    assert f"Without a connection, copy the file to {tmp_path / 'file.bin'}, or set HISTOFLOW_DATA" in str(caught.value)


def test_a_disc_that_takes_no_more_is_not_taken_for_a_cut_connection(file, tmp_path):
    (tmp_path / ".tmp-file.bin.part").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*file\.bin\.part: .*; make room, or give another folder"):
        fetch(file, tmp_path)
    assert len(file.requests) == 1


def test_what_is_not_the_file_yet_has_a_name_that_says_so(file, tmp_path, monkeypatch):
    seen, download = [], remote._Resuming.__call__

    def watched(self, url, output_file, pooch):
        download(self, url, output_file, pooch)
        seen.extend(path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*"))

    monkeypatch.setattr(remote._Resuming, "__call__", watched)
    fetch(file, tmp_path)
    assert seen
    assert all(name.startswith(".tmp-") for name in seen)
    assert left_over(tmp_path) == ["file.bin"]


def test_pooch_stays_silent_and_keeps_its_level(file, tmp_path, monkeypatch):
    logger, heard = pooch.get_logger(), logging.Handler()
    records = []
    heard.emit = records.append
    monkeypatch.setattr(logger, "handlers", [heard])
    monkeypatch.setattr(logger, "level", logging.INFO)
    fetch(file, tmp_path)
    assert not records
    assert logger.level == logging.INFO


# --- archives


def archive(path, *members):
    """A tar.gz with these members: TarInfo, and content where it is a file."""
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def plain(name, content=b"text"):
    return tarfile.TarInfo(name), content


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def test_the_wanted_folder_of_an_archive_is_unpacked_and_nothing_else(tmp_path):
    archive(tmp_path / "a.tar.gz", plain("./spatial/a/b.txt"), plain("other/c.txt"), plain("d.txt"))
    remote._unpack(tmp_path / "a.tar.gz", tmp_path / "spatial")
    assert left_over(tmp_path) == ["a.tar.gz", "spatial"]
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.txt")] == ["spatial/a/b.txt"]


@pytest.mark.parametrize(
    "member",
    [
        plain("../evil"),
        plain("spatial/../../evil"),
        plain("spatial/../evil"),
        link("spatial/evil", "../../evil"),
        link("spatial/evil", "a.txt"),
        link("spatial/evil", "/etc/hostname", tarfile.LNKTYPE),
        link("spatial/evil", "", tarfile.FIFOTYPE),
    ],
    ids=["above", "above from within", "beside", "link out", "link within", "hard link", "pipe"],
)
def test_an_archive_that_leaves_its_folder_or_holds_links_is_refused_and_removed(tmp_path, member):
    folder = tmp_path / "in" / "section"
    folder.mkdir(parents=True)
    archive(folder / "a.tar.gz", plain("spatial/a.txt"), member)
    with pytest.raises(ReadError, match=r"a\.tar\.gz cannot be unpacked \(.*evil.*\); it was removed: call again"):
        remote._unpack(folder / "a.tar.gz", folder / "spatial")
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "section"]


@pytest.mark.parametrize("damage", ["truncated", "changed", "no archive", "nothing wanted"])
def test_a_damaged_archive_is_removed_and_leaves_nothing(tmp_path, damage):
    path = tmp_path / "a.tar.gz"
    archive(path, plain("spatial/a.txt" if damage != "nothing wanted" else "other/a.txt", BODY))
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:100_000])
    elif damage == "changed":
        path.write_bytes(content[:-8] + bytes(8))
    elif damage == "no archive":
        path.write_bytes(BODY)
    with pytest.raises(ReadError, match="cannot be unpacked"):
        remote._unpack(path, tmp_path / "spatial")
    assert left_over(tmp_path) == []


# --- HER2ST


def test_her2st_is_downloaded_once_told_its_licence_and_read(tumour, tmp_path, caplog):
    cohort = her2st(("C2", "C3"), cache_dir=tmp_path)
    (told,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert told.name.startswith("histoflow")
    assert (
        "licence none stated by its source; cite Andersson et al., Nat. Commun. 12, 6012" in caplog.records[0].message
    )
    assert len(tumour.requests) == 6
    assert [(row.section, row.patient, row.block, row.order, row.kind, row.role) for row in cohort.rows] == [
        ("C2", "C", "C", 2, "st", "reference"),
        ("C3", "C", "C", 3, "st", "reference"),
    ]
    c2, c3 = cohort
    assert c2.uns["histoflow"]["slide"] == str(tmp_path / "data" / "her2st" / "C2" / "5714_HE_BT_C2.jpg")
    assert c2.uns["histoflow"]["study"] == "her2st"
    assert c2.uns["histoflow"]["mpp_x"] == pytest.approx(MPP, rel=0.03)
    assert list(c3.obs["patient"].unique()) == ["C"]
    caplog.clear()
    her2st(("C2", "C3"), cache_dir=tmp_path, download=False)
    assert len(tumour.requests) == 6
    assert not caplog.records


def test_the_source_and_its_licence_lie_beside_the_files(tumour, tmp_path):
    her2st(("C2",), cache_dir=tmp_path)
    told = json.loads((tmp_path / "data" / "her2st" / "C2" / "source.json").read_text())
    assert "licence none stated" in told["terms"]
    assert told["files"]["5714_HE_BT_C2.jpg"].startswith(tumour.url)
    assert not (tmp_path / "data" / "her2st" / "C2" / "checksums.json").exists()  # they are in the catalogue


def test_nothing_is_written_outside_the_cache_folder(tumour, block, tmp_path, monkeypatch):
    others = {"home": "HOME", "default": "HISTOFLOW_CACHE", "xdg": "XDG_CACHE_HOME", "tmp": "TMPDIR"}
    for name, variable in others.items():
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    list(her2st(("C2",), cache_dir=tmp_path / "cache"))
    load_breast(2, cache_dir=tmp_path / "cache")
    assert [path.name for path in tmp_path.iterdir() if any(path.iterdir())] == ["cache"]


def test_a_cache_folder_may_be_relative(tumour, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = her2st(("C2",), cache_dir="cache").rows[0]
    assert row.slide == tmp_path / "cache" / "data" / "her2st" / "C2" / "5714_HE_BT_C2.jpg"


def test_a_file_of_the_cache_that_was_damaged_is_named(tumour, tmp_path):
    her2st(("C2",), cache_dir=tmp_path)
    damaged = tmp_path / "data" / "her2st" / "C2" / "counts.tsv.gz"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ReadError, match=r"C2/counts\.tsv\.gz is damaged .* expected \w{64}, got \w{64}; remove it"):
        her2st(("C2",), cache_dir=tmp_path)
    damaged.unlink()
    her2st(("C2",), cache_dir=tmp_path)
    assert len(tumour.requests) == 4


def test_what_lies_in_histoflow_data_is_taken_from_there(tumour, tmp_path, monkeypatch):
    her2st(("C2",), cache_dir=tmp_path / "first")
    monkeypatch.setenv("HISTOFLOW_DATA", str(tmp_path / "first" / "data"))
    tumour.requests.clear()
    (row,) = her2st(("C2",), cache_dir=tmp_path / "second").rows
    assert row.counts == tmp_path / "first" / "data" / "her2st" / "C2" / "counts.tsv.gz"
    assert not tumour.requests
    assert not (tmp_path / "second").exists()
    row.spots.write_text("x\ty\n")
    with pytest.raises(ReadError, match=r"first/data/her2st/C2/spots_selection\.tsv is damaged or not the published"):
        her2st(("C2",), cache_dir=tmp_path / "second")
    assert her2st(("C3",), cache_dir=tmp_path / "second").rows[0].counts.is_relative_to(tmp_path / "second")


def test_without_leave_to_download_the_error_says_where_it_looked(tumour, tmp_path):
    with pytest.raises(
        ReadError, match=r"section C2, C3 of her2st is neither in .*/data/her2st nor .* allow the download"
    ):
        her2st(("C2", "C3"), cache_dir=tmp_path, download=False)
    assert not tumour.requests
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        (("C2", "Z9"), r"sections has Z9; give a sequence of names out of A1, C2, C3, C4, C5"),
        ("C2", r"sections has C, 2; give a sequence"),
        ((), r"sections is \(\); name at least one"),
        (("C2", "C2"), r"sections is \('C2', 'C2'\); name .* each once"),
    ],
)
def test_sections_that_are_not_there_are_refused(sections, text):
    with pytest.raises(OptionError, match=text):
        her2st(sections)


def test_a_cache_that_cannot_be_written_is_named(tumour, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError, match=r"cannot write .*cache/data/her2st/C2: .*cache_dir"):
        her2st(("C2",), cache_dir=tmp_path / "cache")
    assert not tumour.requests


def test_without_pooch_the_error_says_what_to_install(tumour, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MissingDependencyError, match=r"needs pooch, .* pip install 'histoflow\[slides\]'"):
        her2st(("C2",), cache_dir=tmp_path)
    assert left_over(tmp_path) == []


# --- the breast tumour block


def test_each_breast_section_has_its_own_folder_positions_and_slide(block, tmp_path, caplog):
    caplog.set_level(logging.INFO, "histoflow")
    cohort = breast(cache_dir=tmp_path)
    (told,) = [record for record in caplog.records if "licence" in record.message]
    assert told.levelno == logging.INFO  # a stated licence is no warning
    assert told.message.startswith("breast: licence not checked here, see the page of the data set; cite 10x Genomics")
    first, second = cohort
    assert [row.order for row in cohort.rows] == [1, 2]
    assert len({row.block for row in cohort.rows}) == 1
    for number, section in ((1, first), (2, second)):
        folder = tmp_path / "data" / "breast" / f"section_{number}"
        name = f"V1_Breast_Cancer_Block_A_Section_{number}"
        assert section.uns["histoflow"]["section"] == name
        assert section.uns["histoflow"]["slide"] == str(folder / f"{name}_image.tif")
        assert section.uns["histoflow"]["mpp_x"] == pytest.approx(MPP)
    # The tissue of section 2 was painted 90 µm further right: each has its own positions.
    assert second.obsm["spatial_um"][:, 0].mean() - first.obsm["spatial_um"][:, 0].mean() == pytest.approx(90, abs=15)
    assert len(block.requests) == 6
    breast(cache_dir=tmp_path)
    assert len(block.requests) == 6


def test_load_breast_opens_the_slide_of_that_section(block, tmp_path):
    section, wsi = load_breast(section=2, cache_dir=tmp_path)
    assert wsi.attrs["histoflow"]["slide"] == section.uns["histoflow"]["slide"]
    assert wsi.attrs["histoflow"]["slide"].endswith("section_2/V1_Breast_Cancer_Block_A_Section_2_image.tif")
    assert wsi.properties.mpp == pytest.approx(MPP)
    assert {request.path.split("/")[1] for request in block.requests} == {"V1_Breast_Cancer_Block_A_Section_2"}


def test_without_the_image_it_is_not_asked_for_and_said(block, tmp_path):
    with pytest.warns(ScaleWarning, match="the hires image of Space Ranger is used"):
        section, wsi = load_breast(cache_dir=tmp_path, include_image=False)
    assert wsi is None
    assert section.uns["histoflow"]["slide"].endswith("spatial/tissue_hires_image.png")
    assert not block.asked("image.tif")
    download_breast(tmp_path)
    assert len(block.asked("image.tif")) == 1
    assert len(block.requests) == 3


def test_what_is_downloaded_first_is_recorded_and_checked_ever_after(block, tmp_path):
    folder = download_breast(tmp_path)
    recorded = json.loads((folder / "checksums.json").read_text())
    assert recorded == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("V1_*") if path.is_file()
    }
    assert len(recorded) == 3
    matrix = next(folder.glob("*.h5"))
    content = matrix.read_bytes()
    matrix.write_bytes(content + b"0")
    with pytest.raises(ReadError, match=r"matrix\.h5 is damaged or not the published file: SHA-256 expected"):
        download_breast(tmp_path)
    matrix.unlink()
    block.files[block.asked("matrix.h5")[0].path.lstrip("/")] = content + b"1"
    with pytest.raises(ReadError, match=rf"expected {recorded[matrix.name]}, got"):
        download_breast(tmp_path)
    assert not matrix.exists()


def test_a_file_laid_into_the_cache_by_hand_is_recorded_and_not_downloaded(block, workshop, tmp_path):
    folder = tmp_path / "data" / "breast" / "section_1"
    folder.mkdir(parents=True)
    slide = folder / "V1_Breast_Cancer_Block_A_Section_1_image.tif"
    slide.write_bytes(invented("visium", 0, workshop)["slide"])
    assert download_breast(tmp_path) == folder
    assert not block.asked("image.tif")
    assert slide.name in json.loads((folder / "checksums.json").read_text())


def test_two_at_once_download_every_file_once(block, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        folders = [pool.submit(download_breast, tmp_path) for _ in range(2)]
    assert len({folder.result() for folder in folders}) == 1
    assert len(block.requests) == 3


def test_an_evil_archive_is_neither_unpacked_nor_recorded(block, tmp_path):
    path = next(path for path in block.files if path.endswith("Section_1_spatial.tar.gz"))
    good = block.files[path]
    archive(tmp_path / "evil.tar.gz", plain("spatial/a.txt"), plain("../evil"))
    block.files[path] = (tmp_path / "evil.tar.gz").read_bytes()
    with pytest.raises(ReadError, match=r"spatial\.tar\.gz cannot be unpacked \(.*evil.*\); it was removed"):
        download_breast(tmp_path / "cache")
    folder = tmp_path / "cache" / "data" / "breast" / "section_1"
    assert left_over(folder) == ["V1_Breast_Cancer_Block_A_Section_1_filtered_feature_bc_matrix.h5", *FACTS]
    assert not list(tmp_path.rglob("evil"))
    block.files[path] = good
    assert read_visium(download_breast(tmp_path / "cache", include_image=True), slide=next(folder.glob("*.tif"))).n_obs


def test_the_archive_may_be_removed_once_it_is_unpacked(block, tmp_path):
    folder = download_breast(tmp_path)
    next(folder.glob("*.tar.gz")).unlink()
    download_breast(tmp_path)
    assert len(block.requests) == 3


def test_breast_in_histoflow_data_needs_no_checksums(block, tmp_path, monkeypatch):
    folder = download_breast(tmp_path / "first")
    (folder / "checksums.json").unlink()
    monkeypatch.setenv("HISTOFLOW_DATA", str(tmp_path / "first" / "data"))
    assert download_breast(tmp_path / "second") == folder
    assert left_over(tmp_path) == ["first"]
    shutil.rmtree(folder / "spatial")
    assert download_breast(tmp_path / "second") == tmp_path / "second" / "data" / "breast" / "section_1"


def test_a_breast_section_that_is_not_there_is_refused():
    with pytest.raises(OptionError, match="section is 3; give one of 1, 2"):
        load_breast(3)


# --- the catalogue and the real sections


def test_every_file_of_the_catalogue_has_an_address_and_a_way_to_be_checked():
    for entry in [*catalogue.HER2ST.values(), *catalogue.BREAST.values()]:
        assert {"counts", "slide"} <= set(entry.files)
        assert entry.source.base_url.startswith("https://")
        assert entry.source.base_url.endswith("/")
        for file in entry.files.values():
            assert (file.sha256 is None) == (entry.source.name == "breast")
            assert file.sha256 is not None or file.begins
            assert Path(file.name).name == file.name
    assert catalogue.HER2ST["A1"].spots_frame == "6954x7435"


@pytest.mark.data
@pytest.mark.filterwarnings("ignore::histoflow._errors.GeneNamesWarning")
@pytest.mark.filterwarnings("ignore::histoflow._errors.DroppedSpotsWarning")
def test_the_real_sections_are_the_published_files_and_are_read_where_they_lie(data_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOFLOW_DATA", str(data_folder))
    monkeypatch.setattr(remote, "urlopen", None)
    assert her2st(cache_dir=tmp_path).section_ids == ["C2", "C3", "C4", "C5"]
    assert left_over(tmp_path) == []
    a1, c2 = her2st(("A1", "C2"))
    assert c2.shape == (187, 15706)
    assert c2.uns["histoflow"]["mpp_x"] == pytest.approx(0.69, rel=0.03)
    assert (c2.uns["histoflow"]["patient"], c2.uns["histoflow"]["order"]) == ("C", 2)
    assert a1.uns["histoflow"]["mpp_x"] == pytest.approx(3.2, rel=0.02)
    assert a1.uns["histoflow"]["patient"] == "A"
