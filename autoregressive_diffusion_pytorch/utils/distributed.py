"""Work that the processes of a distributed run share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

TIMEOUT = timedelta(days=7)  # of the slowest process: their parts of a long work may differ in time


def map_over_processes(
    function: Callable[[Any], Any], arguments: Sequence, progress: str | None = None
) -> list:
    """`[function(argument) for argument in arguments]`, shared by all processes and known to all.

    Results pass through the memory of CPUs: tensors in them must be there.

    Args:
        progress: name of a progress bar over this process's part; None for no bar.
    """
    shared = dist.is_available() and dist.is_initialized()
    count, rank = (dist.get_world_size(), dist.get_rank()) if shared else (1, 0)
    own = arguments[rank::count]
    results = [function(argument) for argument in tqdm(own, progress, disable=progress is None)]
    if not shared:
        return results
    parts = [None] * count
    group = dist.new_group(backend="gloo", timeout=TIMEOUT)
    dist.all_gather_object(parts, results, group=group)
    dist.destroy_process_group(group)
    return [parts[i % count][i // count] for i in range(len(arguments))]
