"""What is released is what the checkout holds: `python .ci/check_dist.py dist` compares wheel and sdist with it."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "src/histoflow/"
NEEDED = {"histoflow/py.typed", "histoflow/bench/report/page/base.html.j2"}
"""What is no Python and has to be there: type information, and the page of a report."""


def tracked(folder: str) -> dict[str, bytes]:
    """Content of the files that git knows in a folder of the checkout, by path."""
    told = subprocess.run(["git", "ls-files", "-z", folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name: (ROOT / name).read_bytes() for name in told.stdout.split("\0") if name}


def in_wheel(path: Path) -> tuple[dict[str, bytes], str]:
    """The package in a wheel by path, and its metadata."""
    with zipfile.ZipFile(path) as wheel:
        content = {name: wheel.read(name) for name in wheel.namelist()}
    metadata = next(text.decode() for name, text in content.items() if name.endswith(".dist-info/METADATA"))
    assert any(name.endswith("/licenses/LICENSE") for name in content), f"{path}: no LICENSE"
    return {name: content[name] for name in content if ".dist-info/" not in name}, metadata


def in_sdist(path: Path) -> dict[str, bytes]:
    """Files of an sdist by their path in the checkout."""
    with tarfile.open(path) as sdist:
        files = {member.name.partition("/")[2]: sdist.extractfile(member) for member in sdist if member.isfile()}
        return {name: file.read() for name, file in files.items() if file is not None}


def main() -> None:
    folder = Path(sys.argv[1])
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    source = {name.removeprefix("src/"): content for name, content in tracked(PACKAGE).items()}
    packed, metadata = in_wheel(wheel)
    other = sorted({name for name, _ in packed.items() ^ source.items()})
    assert not other, f"{wheel.name} differs from the checkout: {other[:3]}"
    assert set(packed) >= NEEDED, f"{wheel.name} lacks {NEEDED - set(packed)}"
    files = in_sdist(sdist)
    lacking = [name for name, content in tracked(PACKAGE).items() if files.get(name) != content]
    assert not lacking, f"{sdist.name} lacks {lacking[:3]}, or has others"
    kept = next(line for line in metadata.splitlines() if line.startswith("Version: "))
    print(f"{wheel.name} and {sdist.name} hold the {len(source)} files of the package; {kept}")


if __name__ == "__main__":
    main()
