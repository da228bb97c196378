"""A user's mistake, as the page says it."""

from __future__ import annotations

import os
import re
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
        raise gr.Error(words_of(error), print_exception=False) from error


def words_of(error: InputError) -> str:
    """Its message with uploads by their names alone: where they lie on this machine is nobody's business."""
    folder = re.escape(os.environ.get("GRADIO_TEMP_DIR", "/nowhere"))
    return re.sub(rf"{folder}/(?:[0-9a-f]+/)?", "", str(error))
