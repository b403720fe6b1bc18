"""Licences of everything that histoflow installs: refuse what is not allowed, and write a CycloneDX bill of materials.

`python .ci/licences.py [SBOM.json]`, in an environment where histoflow is installed with the extras that are shipped.
"""

import json
import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement

EXTRAS = ("slides", "report")
ALLOWED = re.compile(
    r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|Zlib|Unlicense|HPND|MPL|Mozilla|LGPL|Lesser|CC0|CC-BY-4|"
    r"Public Domain",
    re.IGNORECASE,
)
CHOICE = re.compile(r"\(([^()]*) OR [^()]*\)")
FORBIDDEN = re.compile(r"(?<!L)\bA?GPL|(?<!Lesser )(?:Affero )?General Public|NonCommercial|\bNC\b", re.IGNORECASE)


def licence_of(found: Distribution) -> str:
    """What a distribution states, most exact first."""
    told = found.metadata
    classified = [c.rpartition(" :: ")[2] for c in told.get_all("Classifier") or () if c.startswith("License ::")]
    stated = told.get("License-Expression") or "; ".join(classified) or (told.get("License") or "").strip()
    return stated.split("\n")[0]


def installed() -> dict[str, Distribution]:
    """Everything that histoflow needs with its shipped extras, itself left out."""
    found: dict[str, Distribution] = {}
    waiting = [("histoflow", EXTRAS)]
    seen = set()
    while waiting:
        name, extras = waiting.pop()
        key = (re.sub(r"[-_.]+", "-", name).lower(), tuple(sorted(extras)))
        if key in seen:
            continue
        seen.add(key)
        try:
            found[key[0]] = distribution(name)
        except PackageNotFoundError:
            sys.exit(f"{name} is not installed: pip install 'histoflow[{','.join(EXTRAS)}]'")
        for line in found[key[0]].requires or ():
            needed = Requirement(line)
            environments = [default_environment() | {"extra": extra} for extra in (*extras, "")]
            if needed.marker is None or any(needed.marker.evaluate(e) for e in environments):
                waiting.append((needed.name, tuple(needed.extras)))
    del found["histoflow"]
    return dict(sorted(found.items()))


def component(name: str, found: Distribution) -> dict:
    return {
        "type": "library",
        "name": name,
        "version": found.version,
        "purl": f"pkg:pypi/{name}@{found.version}",
        "licenses": [{"license": {"name": licence_of(found) or "unstated"}}],
    }


def main() -> None:
    parts = installed()
    told = {name: licence_of(found) for name, found in parts.items()}
    refused = {
        name: text
        for name, text in told.items()
        if FORBIDDEN.search(CHOICE.sub(r"\1", text)) or not ALLOWED.search(text)
    }
    print("\n".join(f"{name:28s} {parts[name].version:18s} {text[:100] or 'unstated'}" for name, text in told.items()))
    if len(sys.argv) > 1:
        root = {"type": "library", "name": "histoflow", "version": distribution("histoflow").version}
        bill = {
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": {"component": root},
            "components": [component(name, found) for name, found in parts.items()],
        }
        Path(sys.argv[1]).write_text(json.dumps(bill, indent=2) + "\n")
    if refused:
        sys.exit(f"not allowed, or unstated: {refused}")


if __name__ == "__main__":
    main()
