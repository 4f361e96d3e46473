"""One process per GPU, all training as one: each takes its share of every batch, and gradients are averaged.

No wrapper around the network: a step has two backward passes, and the second reaches only a part of it. So
gradients are averaged once, after both, where a reader sees it. On one device every function here does nothing.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm
from torch import Tensor, nn

_Value = TypeVar("_Value")


def num_devices() -> int:
    """CUDA devices that may be used, at least 1: without any, everything runs on the CPU."""
    return max(torch.cuda.device_count(), 1)


def rank() -> int:
    """Number of this process, from 0."""
    return int(comm.get_rank())


def world_size() -> int:
    """Processes that train as one, this one among them."""
    return int(comm.get_world_size())


def is_main_process() -> bool:
    """Whether this process is the one that writes and speaks; alone it is."""
    return bool(comm.is_main_process())


def barrier() -> None:
    """Return when every process has come here."""
    comm.synchronize()


def launch_processes(function: Callable[..., None], *args: Any) -> None:
    """Call ``function`` once per CUDA device, each in a process of its own; here, where there is but one device.

    Args:
        function: of a module's top level.
        args: can be pickled.

    Raises:
        torch.multiprocessing.ProcessException: a process failed; the others were ended.
    """
    launch(function, num_devices(), dist_url="auto", args=args)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process the mean gradient; a parameter without one counts as 0."""
    if world_size() == 1:
        return
    gradients = []
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    flat = torch.cat([gradient.flatten() for gradient in gradients])  # one message instead of hundreds
    dist.all_reduce(flat)
    flat /= world_size()
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, mean in zip(gradients, torch.split(flat, sizes), strict=True):
        gradient.copy_(mean.view(gradient.shape))


def all_reduce_mean(values: Tensor) -> Tensor:
    """The same mean on every process, shape and device as given."""
    if world_size() == 1:
        return values
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    summed = values.to(device, copy=True)
    dist.all_reduce(summed)
    return (summed / world_size()).to(values.device)


def all_gather(value: _Value) -> list[_Value]:
    """The values of all processes, by rank, on every process; any that can be pickled."""
    return list(comm.all_gather(value))


def any_rank(flag: bool) -> bool:
    """Whether it is true on one of them."""
    return bool(all_reduce_mean(torch.tensor(float(flag))) > 0)
