"""One self-contained HTML file: template, style, scripts and data inlined, and nothing fetched from anywhere."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

from histoflow._errors import MissingDependencyError
from histoflow.bench.report.words import number, percent

_FOLDER = Path(__file__).parent / "page"
_SCRIPTS = ("charts.js", "maps.js", "table.js", "page.js")
_NO_TAGS = str.maketrans({letter: f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"})


def check_library() -> None:
    """Raise unless the libraries that a page is made with are installed.

    Raises
    ------
    MissingDependencyError
        If they are not.
    """
    _library("plotly.offline")
    _library("jinja2")


def render(template: str, content: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Fill a template.

    Parameters
    ----------
    template
        Name of a file in ``page/``.
    content
        What the template names; every text is escaped.
    data
        What the scripts read, as JSON.

    Returns
    -------
    The page. A policy in it forbids every request, and every script but its own.

    Raises
    ------
    MissingDependencyError
        If plotly or Jinja2 are not installed.
    """
    scripts = [_library("plotly.offline").get_plotlyjs(), "\n".join((_FOLDER / name).read_text() for name in _SCRIPTS)]
    filled: str = (
        _environment()
        .get_template(template)
        .render(
            content,
            style=(_FOLDER / "page.css").read_text(),
            scripts=scripts,
            policy=_policy(scripts),
            data=as_script_data(data),
        )
    )
    return filled


def as_script_data(data: Any) -> str:
    """JSON that cannot end the script element it stands in.

    Raises
    ------
    ValueError
        If it holds NaN or infinity, which no JSON can.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.translate(_NO_TAGS)


def _environment() -> Any:
    jinja2 = _library("jinja2")
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": number, "percent": percent}
    return made


def _policy(scripts: list[str]) -> str:
    """The Content-Security-Policy of the page: its own scripts by their hashes, its own pictures, no request."""
    hashes = [f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts]
    return (
        f"default-src 'none'; script-src {' '.join(hashes)}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as err:
        raise MissingDependencyError(
            f"a report is made with plotly and Jinja2, and {name.split('.')[0]} is not installed: "
            "pip install 'histoflow[report]'"
        ) from err
