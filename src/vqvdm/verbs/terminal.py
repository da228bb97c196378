"""What verbs print: names of files and classes come from strangers, and must not command the terminal."""

from __future__ import annotations

from rich.markup import escape

from vqvdm.errors import printable


def say(text: str) -> None:
    """Print it, `printable`, at once."""
    print(printable(text), flush=True)


def shown(text: str) -> str:
    """For rich: as it is, whatever files and classes are called: no markup, and nothing that a terminal obeys."""
    return escape(printable(text))
