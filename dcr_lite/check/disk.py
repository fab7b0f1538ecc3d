"""Room on the disk for what the run writes and fetches."""

import os
import shutil
from pathlib import Path

from dcr_lite.check.finding import Finding, Task
from dcr_lite.check.reach import full_data_is_here, reads_public_sets
from dcr_lite.data.sources import CONVERSION_BYTES, SMOLLM2
from dcr_lite.files import cache_folder
from dcr_lite.model.memory import disk_need
from dcr_lite.run.obstacles import require_folder
from dcr_lite.run.run_folder import DISK_BYTES

FULL_DATA_BYTES = 200_000_000  # the public sets as they are fetched, and the rows drawn from them
FILE_BYTES = 2  # of a weight in the files on the Hub


def look(task: Task) -> Finding:
    """The room on each disk beside what is needed there. Raises UserError where the run cannot begin in its folder."""
    disks: dict[int, list[tuple[Path, int]]] = {}
    found = Finding(values={"disks": []})
    for folder, needed in needs(task).items():
        existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
        disks.setdefault(existing.stat().st_dev, []).append((existing, needed))
        if not os.access(existing, os.W_OK):
            found.problems.append(f"{existing}: nothing can be written there. Choose another folder.")
    for places in disks.values():
        free, needed = shutil.disk_usage(places[0][0]).free, sum(size for _, size in places)
        found.values["disks"].append({"free_bytes": free, "needed_bytes": needed})
        found.says.append(f"{free / 1e9:,.1f} GB free, {needed / 1e9:,.1f} GB needed")
        if free < needed:
            found.problems.append(
                f"{places[0][0]}: {free / 1e9:,.1f} GB free and {needed / 1e9:,.1f} GB needed. Free some disk, or set "
                "--run and HF_HOME to another one."
            )
    task.tell(found)
    require_folder(task.settings)
    return found


def needs(task: Task) -> dict[Path, int]:
    """Bytes needed in each folder: the run's, the Hub's cache and the kit's own."""
    from huggingface_hub.constants import HF_HUB_CACHE

    settings, states = task.settings, task.given_by("hub") or {}
    shape, _ = task.given_by("memory") or (None, None)
    needed = {settings.run: DISK_BYTES if shape is None else max(DISK_BYTES, round(disk_need(shape, settings.rank)))}
    state = states.get(settings.model, "here")
    if settings.model == SMOLLM2 and state in ("open", "unknown"):
        needed[cache_folder()] = CONVERSION_BYTES
    elif state == "open" and shape is not None:
        needed[Path(HF_HUB_CACHE)] = shape.parameters * FILE_BYTES
    if reads_public_sets(settings) and not full_data_is_here():
        needed[cache_folder()] = needed.get(cache_folder(), 0) + FULL_DATA_BYTES
    return needed
