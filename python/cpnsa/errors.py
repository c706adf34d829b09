"""The exceptions of the library. The message says what was found, what was expected, and on which rank."""


class Error(RuntimeError):
    """Base of everything that the library raises."""


class ConfigError(Error, ValueError):
    """A hyperparameter that breaks the algorithm's rules."""


class ArgumentError(Error, ValueError):
    """A tensor, group or partition that does not fit, or a handle used after close()."""


class UnsupportedError(Error, NotImplementedError):
    """A valid request that this device or build cannot serve; the message lists what is supported."""


class MismatchError(Error):
    """Ranks that were given different configurations, sequences or orders of calls."""


class CommunicationError(Error):
    """A transport failed, or another rank gave up."""


class DeadlineError(CommunicationError, TimeoutError):
    """A wait for another rank outlasted the communicator's deadline."""


class DeviceError(Error):
    """The compute device reported a failure."""


# The exception that a signal handler has raised inside a wait of the library, on its way out (python/src/signals.hpp).
_of_signal = None


def refuse(of, problem):
    """Tells the other ranks why this rank cannot make its next collective call. `of` is the layer of the call, or the
    communicator of a layer that is to be made. The caller raises the problem itself."""
    try:
        of.refuse(str(problem) or type(problem).__name__)
    except Error:  # `of` is closed, or the others did not come; the caller raises the problem all the same
        pass


class Refusing:
    """A context for the work of one rank before a collective call of `of`: an exception is told to the other ranks."""

    __slots__ = ("of",)

    def __init__(self, of):
        self.of = of

    def __enter__(self):
        pass

    def __exit__(self, kind, problem, trace):
        if isinstance(problem, Exception):
            refuse(self.of, problem)
