"""The one exception that means: the user's input is at fault, and the message says how to mend it."""

from __future__ import annotations

import logging
import re

_LONGEST = 4000  # characters of a message
# What a terminal obeys instead of showing it: control characters, marks of writing direction; and half characters.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class InputError(ValueError):
    """A mistake in what the user gave.

    The message names the file or field, the value found and what would be right. The command line prints it alone,
    without a traceback, and ends with status 2; from Python it is an ordinary `ValueError`. What it quotes may come
    from a stranger, so it is `printable`.
    """

    def __init__(self, message: object) -> None:
        text = printable(str(message))
        # torch makes one of the whole traceback of a loader process, at whose end is the message.
        cut = f"...{text[3 - _LONGEST :]}" if text.startswith("Caught ") else f"{text[: _LONGEST - 3]}..."
        super().__init__(text if len(text) <= _LONGEST else cut)


def printable(text: str) -> str:
    """The text with escape codes in the place of characters that would command a terminal, or that it cannot show."""
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


def logger_of(module: str) -> logging.Logger:
    """A module's logger, whose messages are `printable`."""
    logger = logging.getLogger(module)
    logger.addFilter(_make_printable)
    return logger


def _make_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True


def reason_of(error: BaseException) -> str:
    """The first line of its message, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def check_at_least_one(**options: int | None) -> None:
    """Raise `InputError` for an option of the command line below 1; None is one that was not given."""
    for name, value in options.items():
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, not {value}")
