"""The one exception that means: the user's input is at fault, and the message says how to mend it."""

from __future__ import annotations


class InputError(ValueError):
    """A mistake in what the user gave.

    The message names the file or field, the value found and what would be right. The command line prints it alone,
    without a traceback, and ends with status 2; from Python it is an ordinary `ValueError`.
    """


def reason_of(error: BaseException) -> str:
    """The first line of its message, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def check_at_least_one(**options: int | None) -> None:
    """Raise `InputError` for an option of the command line below 1; None is one that was not given."""
    for name, value in options.items():
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, not {value}")
