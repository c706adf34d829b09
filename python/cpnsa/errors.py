"""What the library raises. The message says what was found, what was expected, and on which rank."""


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


def refuse(of, problem):
    """Tells the other ranks, which make a collective call of `of`, a layer or the communicator of one to be made, why
    this one cannot. What the problem is is for the caller to raise."""
    try:
        of.refuse(str(problem) or type(problem).__name__)
    except Error:  # closed, or the others did not come: the caller is told the problem
        pass


class Refusing:
    """A rank's way to a collective call of `of`: what goes wrong on it is raised here, and told to the others."""

    __slots__ = ("of",)

    def __init__(self, of):
        self.of = of

    def __enter__(self):
        pass

    def __exit__(self, kind, problem, trace):
        if isinstance(problem, Exception):
            refuse(self.of, problem)
