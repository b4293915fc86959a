"""SIGINT and SIGTERM between two steps."""

import os
import signal

import pytest

from hopformer.cli.interrupts import interrupt_noted, terminate_noted, terminate_unwinds


def test_the_first_interrupt_is_noted_and_the_second_raises() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupt_noted() as interrupt:
        assert not interrupt()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_handler_is_put_back_when_the_block_fails() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), interrupt_noted():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is before


def test_termination_runs_what_cleans_up() -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []
    with pytest.raises(SystemExit) as caught, terminate_unwinds():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            cleaned.append(True)
    assert caught.value.code == 143 and cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_first_termination_is_noted_and_the_second_ends() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with terminate_noted() as terminated:
        os.kill(os.getpid(), signal.SIGTERM)
        assert terminated()
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
