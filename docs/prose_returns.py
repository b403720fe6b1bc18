"""For the reference: what a function returns is told in prose, under the type of its signature."""

import re

import griffe

_RETURNS = re.compile(r"(?m)^( *)Returns\n *-+\n(?P<told>(?:.*\n?)*?)(?=\n *\S[^\n]*\n *-{3,}\n|\Z)")


class ProseReturns(griffe.Extension):
    """Indent the prose of `Returns` below the annotation, as numpydoc wants a description to be."""

    def on_function(self, *, func: griffe.Function, **_: object) -> None:
        """Rewrite one docstring, in memory."""
        if func.docstring is not None and func.returns is not None:
            func.docstring.value = _RETURNS.sub(lambda found: _below(found, str(func.returns)), func.docstring.value)


def _below(found: re.Match[str], annotation: str) -> str:
    margin = found[1]
    told = [line.removeprefix(margin) for line in found["told"].rstrip().split("\n")]
    body = "\n".join(f"{margin}    {line}" if line else "" for line in told)
    return f"{margin}Returns\n{margin}-------\n{margin}{annotation}\n{body}\n"
