import os
import signal
import threading

import pytest

from autoregressive_diffusion_pytorch.training.signals import StopSignals


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_is_noted_and_ends_nothing(name, code):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # as launchers do
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == name
        assert signals.exit_code == code
    assert signal.getsignal(number) is before


def test_control_c_again_ends_at_once(monkeypatch):
    monkeypatch.setattr(StopSignals, "PATIENCE", 0.0)
    with StopSignals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_second_sigterm_requests_nothing_new(monkeypatch):
    monkeypatch.setattr(StopSignals, "PATIENCE", 0.0)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received == "SIGTERM"


def test_in_another_thread_nothing_is_noted():
    before = signal.getsignal(signal.SIGTERM)
    handlers = []

    def run():
        with StopSignals() as signals:
            handlers.append((signal.getsignal(signal.SIGTERM), signals.received))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [(before, None)]
