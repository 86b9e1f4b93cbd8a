"""Ctrl-C that cannot get lost."""

from __future__ import annotations

import os
import signal

import pytest

from sarm2_cli.interrupts import remembered_interrupts


class Swallower:
    """Is interrupted while it is destroyed, where Python ignores exceptions."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_raises_as_ever() -> None:
    with remembered_interrupts() as interrupted, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert interrupted.is_set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_inside_a_destructor_is_remembered() -> None:
    with remembered_interrupts() as interrupted:
        assert not interrupted.is_set()
        swallower = Swallower()
        del swallower
        assert interrupted.is_set()


def test_the_handler_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with remembered_interrupts():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
