"""gradio's queue within bounds: what it remembers of visitors, and whether one that it works for is still there.

gradio has no public way to either, so this reaches into its queue; everything that does is in this file.
"""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.context import LocalContext
from gradio.utils import LRUCache

_WAITING = 20  # requests in the queue, beyond which the page says that it is busy
_VISITORS = 200  # of whom gradio remembers messages and states of components, a tenth of a MiB each


class Visitors(LRUCache[str, Any]):
    """Messages that wait to be fetched, by session: those of the sessions that were used last.

    gradio's own forgets by age alone, and so may forget somebody who is in the queue just now.

    Args:
        most: sessions.
        events: by session, of which those go that are forgotten.
    """

    def __init__(self, most: int, events: dict[str, set[str]]) -> None:
        super().__init__(most)
        self._events = events

    def __getitem__(self, key: str) -> Any:
        messages = super().__getitem__(key)
        self.move_to_end(key)
        return messages

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self._events.pop(key, None)

    def popitem(self, last: bool = True) -> tuple[str, Any]:
        """Forget the one that was used last, or longest ago."""
        session, messages = super().popitem(last)
        self._events.pop(session, None)
        return session, messages


def bound(page: gr.Blocks, waiting: int = _WAITING, visitors: int = _VISITORS) -> None:
    """Let so many requests wait and remember so many visitors; there is no way past the queue."""
    page.queue(max_size=waiting, api_open=False)  # open, /run/generate would be worked on at once, beside the others
    page.state_session_capacity = visitors
    queue = page._queue
    queue.pending_messages_per_session = Visitors(visitors, queue.pending_event_ids_session)


def has_left() -> bool:
    """Whether who asked for what this thread works on has closed the connection, or cancelled."""
    page, event = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    if page is None or event is None:
        return False
    asked = page._queue.event_ids_to_events.get(event)
    return asked is None or not asked.alive
