"""Work that the processes of a distributed run share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist


def map_over_processes(function: Callable[[Any], Any], arguments: Sequence) -> list:
    """`[function(argument) for argument in arguments]`, each computed by one of the processes, and known to all of them.

    Results pass through the memory of CPUs: tensors in them must be there.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [function(argument) for argument in arguments]
    count, rank = dist.get_world_size(), dist.get_rank()
    parts = [None] * count
    own = [function(argument) for argument in arguments[rank::count]]
    dist.all_gather_object(parts, own, group=dist.new_group(backend="gloo"))
    return [parts[i % count][i // count] for i in range(len(arguments))]
