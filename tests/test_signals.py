"""Ctrl-C and SIGTERM in programs: a sentence and a conventional exit code, wherever the program is."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tinynet import signals
from tinynet.signals import SIGNALS, Terminated
from tinynet.train.interrupt import Interrupt

SENTENCES = {signal.SIGINT: "interrupted by Ctrl-C", signal.SIGTERM: "interrupted by SIGTERM"}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_once_for_one_request(number):
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(KeyboardInterrupt) as raised, signals.raised():
        try:
            os.kill(os.getpid(), number)
            pytest.fail("the signal did nothing")
        finally:
            os.kill(os.getpid(), number)  # as `timeout` and `make` do
    assert isinstance(raised.value, Terminated) == (number == signal.SIGTERM)
    assert signals.signal_of(raised.value) == number and signals.message(number) == SENTENCES[number]
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_later_signal_raises_again(monkeypatch):
    monkeypatch.setattr(signals, "SECONDS_OF_ONE_REQUEST", 0.01)
    with signals.raised():
        for _ in range(2):
            with pytest.raises(Terminated):
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.02)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupt_only_takes_note(number):
    before = [signal.getsignal(each) for each in SIGNALS]
    with Interrupt() as interrupt:
        assert interrupt.signal is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert interrupt.signal == number
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_control_c_interrupts_at_once(first):
    with pytest.raises(KeyboardInterrupt) as raised, signals.raised(), Interrupt() as interrupt:
        os.kill(os.getpid(), first)
        assert interrupt.signal == first
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal did nothing")
    assert not isinstance(raised.value, Terminated)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_program_that_is_at_its_imports_ends_at_once(tmp_path, number):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from tinynet import signals\n"
        "signals.exit_at_once()\n"
        "try:\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "except BaseException:\n"
        "    pass\n"
        "print('went on')\n"
    )
    result = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (128 + number, "")
    assert result.stderr == f"program: {SENTENCES[number]}\n"


def test_a_program_that_has_said_its_sentence_does_not_repeat_it(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal\n"
        "from tinynet import signals\n"
        "signals.exit_at_once()\n"
        "try:\n"
        "    with signals.raised():\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "except signals.Terminated:\n"
        "    print('ended', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    result = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (143, "ended\n", "")


def test_the_package_itself_is_imported_without_pytorch():
    code = "import sys; from tinynet import cli, signals, streams; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
