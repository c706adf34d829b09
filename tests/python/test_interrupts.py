"""Python callbacks of a communicator: signals, calls from within a step, and their memory. One process plays one of two
ranks: its callbacks answer as an equal other rank would."""

import os
import signal
import threading
import time

import numpy
import pytest

import cpnsa
import cpnsa.numpy

config = cpnsa.Config(num_q_heads=2, num_kv_heads=2, head_dim_qk=4, head_dim_v=4, compress_block=4, compress_stride=2,
                      select_block=4, select_count=3, init_blocks=1, local_blocks=1, window=5, compressor="mean")
T = 64
arrays = [numpy.random.default_rng(0).standard_normal((T, 2, d)).astype("f") for d in (4, 4, 4, 3)]


class Transport:
    """Says what the other rank says; `act`, once set, is called in its place in the next exchange."""

    def __init__(self):
        self.act = None
        self.views = []

    def act_once(self):
        act, self.act = self.act, None
        if act is not None:
            act()

    def exchange(self, sends, receives):
        self.act_once()

    def all_gather(self, memory, part):
        self.act_once()
        self.views.append(memory)
        memory[part:2 * part] = memory[:part]

    def set_deadline(self, seconds):
        pass


@pytest.fixture
def transport():
    return Transport()


@pytest.fixture
def attention(transport):
    communicator = cpnsa._core.callback_communicator(0, 2, transport.exchange, transport.all_gather,
                                                     transport.set_deadline)
    # All rows are this rank's, so that the other has nothing to send.
    partition = cpnsa.Partition.custom([0, T], 4, [[(0, T)], []])
    return cpnsa.numpy.Attention(config, partition, communicator=communicator)


def raiser(problem):
    def act():
        raise problem

    return act


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_interrupts_stay_what_they_are(transport, attention, kind):
    transport.act = raiser(kind(7))
    with pytest.raises(kind) as raised:
        attention.forward(*arrays)
    assert raised.value.args == (7,)
    with pytest.raises(cpnsa.CommunicationError, match=kind.__name__):  # the communicator has failed
        attention.forward(*arrays)


def test_an_exit_handler_while_a_layer_is_made(transport):
    communicator = cpnsa._core.callback_communicator(0, 2, transport.exchange, transport.all_gather,
                                                     transport.set_deadline)
    transport.act = raiser(SystemExit(3))
    with pytest.raises(SystemExit):
        cpnsa.numpy.Attention(config, cu_seqlens=[0, T], communicator=communicator)


def test_a_signal_handler_that_raises(transport, attention):
    transport.act = lambda: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        attention.forward(*arrays)


@pytest.fixture
def handler():
    """Installs a handler of SIGINT, and sends the signal while the main thread waits."""
    before = signal.getsignal(signal.SIGINT)

    def install(function):
        signal.signal(signal.SIGINT, function)
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()

    yield install
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_a_wait_in_the_library(handler):
    """Of ranks that are threads; the other one does not come."""
    communicators = cpnsa._core.threads_communicators(2)
    for communicator in communicators:
        communicator.set_deadline(60)
    handler(signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        communicators[0].barrier()
    with pytest.raises(cpnsa.Error, match="interrupted"):  # the communicator has failed
        communicators[0].barrier()
    with pytest.raises(cpnsa.Error, match="rank 0 gave up: interrupted"):
        communicators[1].barrier()


def test_ctrl_c_while_a_layer_waits(handler):
    communicators = cpnsa._core.threads_communicators(2)
    communicators[1].set_deadline(60)
    handler(signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        cpnsa.numpy.Attention(config, cu_seqlens=[0, T], communicator=communicators[1])


def test_a_handler_that_raises_nothing_leaves_the_wait_alone(handler):
    communicators = cpnsa._core.threads_communicators(2)
    handled, came = threading.Event(), threading.Event()
    handler(lambda *_: handled.set())

    def come():
        handled.wait(60)
        communicators[1].barrier()
        came.set()

    other = threading.Thread(target=come)
    other.start()
    communicators[0].barrier()
    other.join()
    assert handled.is_set() and came.is_set()


@pytest.mark.parametrize("name", ["close", "statistics", "refuse", "forward", "backward"])
def test_calls_from_within_a_step_are_errors(transport, attention, name):
    """As from a signal handler; they waited for ever for the step that they were in."""
    calls = {"close": attention.close, "statistics": attention.statistics,
             "refuse": lambda: attention._attention.refuse("a problem"), "forward": lambda: attention.forward(*arrays)}
    out, saved = attention.forward(*arrays)
    calls["backward"] = lambda: attention.backward(out, saved)
    seen = []

    def act():
        with pytest.raises(cpnsa.ArgumentError, match="from within a step of the same layer") as raised:
            calls[name]()
        seen.append(raised)

    transport.act = act
    again, _ = attention.forward(*arrays)
    assert len(seen) == 1 and numpy.array_equal(out, again)
    attention.close()


def test_another_thread_waits_for_the_step(transport, attention):
    entered = threading.Event()
    closer = threading.Thread(target=lambda: (entered.wait(), attention.close()))
    closer.start()

    def act():
        entered.set()
        time.sleep(0.2)

    transport.act = act
    out, _ = attention.forward(*arrays)
    closer.join()
    assert numpy.isfinite(out).all()
    with pytest.raises(cpnsa.ArgumentError, match="closed"):
        attention.statistics()


@pytest.mark.parametrize("text", ["\udcff and more", "grün"])
def test_texts_of_exceptions(transport, attention, text):
    transport.act = raiser(ValueError(text))
    shown = text if text.isprintable() else r"\\udcff and"
    with pytest.raises(cpnsa.CommunicationError, match=f"ValueError: {shown}"):
        attention.forward(*arrays)


def test_an_exception_without_text(transport, attention):
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    transport.act = raiser(Mute())
    with pytest.raises(cpnsa.CommunicationError, match="Mute: an exception whose text cannot be read"):
        attention.forward(*arrays)


def test_views_are_released_after_the_call(transport, attention):
    attention.forward(*arrays)
    assert transport.views
    for view in transport.views:
        with pytest.raises(ValueError, match="released"):
            view[0]
