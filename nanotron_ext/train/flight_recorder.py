"""torch's flight recorder: the last operations of every process group, with stacks, as a file per rank.

torch records the last 2,000 operations of each rank in memory, and writes them only when NCCL's own time-out is over,
an hour here, to the node's temporary folder, which goes with the node. On an alarm they go to the run's logs at once,
`<run>/logs/flight-recorder-rank<n>`, and NCCL's own would too. `torchfrtrace <run>/logs -p flight-recorder-rank` reads
them together and shows where the ranks part. The recorder costs one entry of a ring per operation.
"""

import os
from pathlib import Path

from torch._C import _distributed_c10d

PREFIX = "flight-recorder-rank"
_ENTRIES = 2000  # about the operations of ten steps of the 3B recipes


def configure(run_folder: Path) -> None:
    """To be called before there is a process group. What the user has set stays."""
    settings = {  # by their names, and those that they had before
        ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"): str(_ENTRIES),
        ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"): str(run_folder.absolute() / "logs" / PREFIX),
    }
    for (name, former), value in settings.items():
        if former not in os.environ:
            os.environ.setdefault(name, value)


def write(logs: Path, rank: int) -> None:
    """Leave this rank's records in the folder; nothing if this torch has no recorder."""
    dump = getattr(_distributed_c10d, "_dump_nccl_trace", None) or getattr(_distributed_c10d, "_dump_fr_trace", None)
    if dump is not None:
        (logs / f"{PREFIX}{rank}").write_bytes(dump())
