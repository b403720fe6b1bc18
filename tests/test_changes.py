"""What is written for the next release can be put into the changelog as it is."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
FRAGMENT = re.compile(rf"[a-z0-9-]+\.({'|'.join(kind['directory'] for kind in SETTINGS['type'])})\.md")
FRAGMENTS = [path for path in sorted((ROOT / SETTINGS["directory"]).iterdir()) if path.name not in SETTINGS["ignore"]]


def wrong(name: str, text: str) -> str:
    """What is wrong with a fragment of this name and text; empty if nothing is."""
    if not FRAGMENT.fullmatch(name):
        return f"{name}: call it NAME.KIND.md, as changes/README.md says"
    if not text.strip() or not text.endswith("\n") or re.search(r"(?m)^\s*([-*#]|$)", text.rstrip()):
        return f"{name}: one paragraph without bullets or headings, which the changelog adds"
    return ""


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: path.name)
def test_a_fragment_can_be_put_into_the_changelog(path):
    assert wrong(path.name, path.read_text()) == ""


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("large-slides.added.md", "Slides of any size.\n", ""),
        ("large-slides.added.md", "Slides of any size,\nalso on small machines.\n", ""),
        ("large-slides.added.md", "\n", "one paragraph"),
        ("large-slides.added.md", "Slides.", "one paragraph"),
        ("large-slides.added.md", "- Slides.\n", "one paragraph"),
        ("large-slides.added.md", "Slides.\n\nMore of them.\n", "one paragraph"),
        ("large-slides.md", "Slides.\n", "NAME.KIND.md"),
        ("large-slides.better.md", "Slides.\n", "NAME.KIND.md"),
        ("Large slides.added.md", "Slides.\n", "NAME.KIND.md"),
    ],
)
def test_another_fragment_is_refused(name, text, told):
    assert told in wrong(name, text)
    assert bool(told) == bool(wrong(name, text))


def test_the_changelog_has_the_place_where_releases_go():
    text = (ROOT / SETTINGS["filename"]).read_text()
    assert text.count(SETTINGS["start_string"]) == 1
    assert text.index(SETTINGS["start_string"]) < text.index("\n## ")
