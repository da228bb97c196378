"""Signals to a training: the first one asks it to stop, launchers may repeat it, a later Ctrl-C is meant."""

from __future__ import annotations

import signal

import pytest

from vqvdm.train import interrupt as module
from vqvdm.train.interrupt import SIGNALS, Interrupt


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_its_echo_changes_nothing(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in SIGNALS}
    with Interrupt() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(number)
        assert interrupt.requested
        for echo in SIGNALS:
            signal.raise_signal(echo)
    assert {each: signal.getsignal(each) for each in SIGNALS} == before


def test_a_later_ctrl_c_acts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((10.0, 11.1))
    with Interrupt():
        monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
