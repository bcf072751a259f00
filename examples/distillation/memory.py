"""Peak memory, and what becomes of freed memory."""

import ctypes
import platform
import sys

import torch

try:
    import resource
except ImportError:  # not on Windows
    resource = None


def keep_freed_memory() -> None:
    """Ask the C library not to hand large freed blocks back to the system. Linux with glibc only.

    The feature maps of every step are tens of megabytes. By default each is a fresh mapping whose
    pages the system clears one by one, which took half of the time of a step on two cores.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold = -1, -3  # names of the options in malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, (1 << 31) - 1)


def stay_within(limit_gb: float, peak: int) -> str | None:
    """Return what to say if the peak went over the limit."""
    if peak <= limit_gb * 1e9:
        return None
    return (
        f"peak memory {peak / 1e9:.2f} GB is over --memory-limit-gb {limit_gb:g}: please report "
        "the options; a lower limit makes the chunks smaller"
    )


def give_back_freed_memory() -> None:
    """Ask the C library to hand every freed block of a megabyte back to the system at once.

    The opposite of `keep_freed_memory`: slower, but then resident memory is what is in use.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(-3, 1 << 20)


def peak_memory(device: torch.device) -> int:
    """Return the most memory used so far in bytes: allocated on a GPU, resident on a CPU.

    0 where the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, KiB elsewhere


def is_exhausted(error: BaseException) -> bool:
    """Whether it says that there is no memory left. On a CPU PyTorch has no class of its own."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "can't allocate memory" in str(error)


def explain(error: BaseException) -> str:
    """Return what to say about it, and the ways out."""
    reason = str(error).split("DefaultCPUAllocator: ")[-1].splitlines()
    return (
        f"out of memory ({reason[0].split('. ')[0] if reason else 'no details'}). Smaller: "
        "--batch-real, --ipc, --width, --image-size; --memory-limit-gb handles the classes in parts"
    )
