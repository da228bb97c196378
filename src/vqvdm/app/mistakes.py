"""A user's mistake, as the page says it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from vqvdm.errors import InputError


@contextmanager
def mistakes_shown() -> Iterator[None]:
    """Within it an `InputError` becomes gradio's error: its message on the page, no traceback in the terminal."""
    try:
        yield
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from error
