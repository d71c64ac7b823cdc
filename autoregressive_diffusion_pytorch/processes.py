"""Work that the processes of a distributed run share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

LONGEST_WAIT = timedelta(days=7)  # of one process for another: their parts of a long work need not take the same time


def map_over_processes(function: Callable[[Any], Any], arguments: Sequence, progress: str | None = None) -> list:
    """`[function(argument) for argument in arguments]`, each computed by one of the processes, and known to all of them.

    Results pass through the memory of CPUs: tensors in them must be there.

    Args:
        progress: name of a progress bar over this process's part; none without.
    """
    shared = dist.is_available() and dist.is_initialized()
    count, rank = (dist.get_world_size(), dist.get_rank()) if shared else (1, 0)
    own = [function(argument) for argument in tqdm(arguments[rank::count], desc=progress, disable=progress is None)]
    if not shared:
        return own
    parts = [None] * count
    group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    dist.all_gather_object(parts, own, group=group)
    dist.destroy_process_group(group)
    return [parts[i % count][i // count] for i in range(len(arguments))]
