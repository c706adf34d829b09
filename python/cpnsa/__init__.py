"""Native Sparse Attention (arXiv 2502.11089), forward and backward, over sequences sharded across ranks.

cpnsa.numpy works on NumPy arrays, cpnsa.torch on PyTorch tensors and torch.distributed process groups. This module has
what they share; none of it imports either framework.
"""

from ._core import (
    Attention,
    Buffer,
    Communicator,
    Config,
    Decoder,
    Device,
    PageAllocator,
    Partition,
    Saved,
    StepRecord,
    chrome_trace,
    cpu_device,
    cuda_device,
    forecast,
    forecast_decode,
    has_cuda,
    info,
    kernels_of,
    set_log_level,
    threads_communicators,
)
from .errors import (
    ArgumentError,
    CommunicationError,
    ConfigError,
    DeadlineError,
    DeviceError,
    Error,
    MismatchError,
    UnsupportedError,
)
from .options import AttentionOptions
from .version import __version__

__all__ = [
    "ArgumentError",
    "Attention",
    "AttentionOptions",
    "Buffer",
    "CommunicationError",
    "Communicator",
    "Config",
    "ConfigError",
    "DeadlineError",
    "Decoder",
    "Device",
    "DeviceError",
    "Error",
    "MismatchError",
    "PageAllocator",
    "Partition",
    "Saved",
    "StepRecord",
    "UnsupportedError",
    "__version__",
    "chrome_trace",
    "cpu_device",
    "cuda_device",
    "forecast",
    "forecast_decode",
    "has_cuda",
    "info",
    "kernels_of",
    "set_log_level",
    "threads_communicators",
]
