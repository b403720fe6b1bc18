"""The cache command: what it takes, and that it removes that and nothing else."""

import pytest
from tests.test_cli import check_error, histoflow


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    for name, size in (("features/a/1.npy", 100), ("features/2.npy", 50), ("slides/s.tif", 2000), ("notes.txt", 7)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)
    monkeypatch.setenv("HISTOFLOW_CACHE", str(folder))
    return folder


def test_sizes_are_told_by_kind(cache):
    told = histoflow("cache", "list", "--json").json
    assert told["cache"] == str(cache)
    assert told["bytes"] == {"features": 150, "slides": 2000, "weights": 0, "data": 0, "toy": 0}
    lines = histoflow("cache", "list").out.splitlines()
    assert str(cache) in lines[0]
    assert [line.split()[0] for line in lines[1:]] == list(told["bytes"])


def test_a_kind_is_removed_and_the_rest_stays(cache):
    done = histoflow("cache", "clear", "features", "--yes", "--json")
    assert (done.code, done.json["removed"]) == (0, {"features": 150})
    assert not (cache / "features").exists()
    assert (cache / "slides" / "s.tif").exists()


def test_all_kinds_are_removed_and_other_peoples_files_stay(cache):
    assert histoflow("cache", "clear", "--yes").code == 0
    assert [path.name for path in cache.iterdir()] == ["notes.txt"]


def test_nothing_is_removed_without_yes(cache):
    check_error(histoflow("cache", "clear"), 2, "add --yes")
    assert (cache / "features" / "2.npy").exists()


def test_an_unknown_kind_is_wrong_usage(cache):
    assert histoflow("cache", "clear", "..", "--yes").code == 2
    assert (cache / "notes.txt").exists()


def test_a_link_is_removed_and_what_it_names_stays(cache, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "w.pt").write_bytes(b"x" * 9)
    (cache / "weights").symlink_to(elsewhere)
    assert histoflow("cache", "list", "--json").json["bytes"]["weights"] == 0
    assert histoflow("cache", "clear", "weights", "--yes").code == 0
    assert not (cache / "weights").exists()
    assert (elsewhere / "w.pt").exists()


def test_a_cache_that_is_not_there_is_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOFLOW_CACHE", str(tmp_path / "none"))
    assert set(histoflow("cache", "list", "--json").json["bytes"].values()) == {0}
    assert histoflow("cache", "clear", "--yes").code == 0
