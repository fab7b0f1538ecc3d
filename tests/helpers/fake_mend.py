"""In place of dcr-lite mend: says how far it is, waits, and leaves what a check or a whole run has prepared.

python fake_mend.py PREPARED [flags of mend]: of the folder PREPARED, checked/ is what a check leaves in the run folder,
mended/ what a run does. Each waits for the file PREPARED/go. A file PREPARED/error is what it ends with instead.
"""

import itertools
import json
import shutil
import signal
import sys
import time
from pathlib import Path


def main(prepared: Path, words: list[str]) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    flags = dict(itertools.pairwise(words))
    run = Path(flags["--run"])
    run.mkdir(exist_ok=True)
    known = {"model": flags["--model"], "marks": flags["--marks"]}
    (run / "settings.json").write_text(json.dumps({"settings": known}))
    (prepared / "words.json").write_text(json.dumps(words))
    if (prepared / "error").exists():
        sys.exit("\nerror: " + (prepared / "error").read_text())
    if "--check" in words:
        print("Stock answers: 6/6  \nYour prompts: 3/6   left 7 s")
    else:
        shutil.copyfile(prepared / "mended" / "joined.json", run / "joined.json")
        print("dial            above stock\nestimated time  about 12 min\nrun folder      here")
        print("Stage 1: contrastive: 40/40  loss 1.000\nEvaluation: 12/16   left 200 s")
    while not (prepared / "go").exists():
        time.sleep(0.02)
    shutil.copytree(prepared / ("checked" if "--check" in words else "mended"), run, dirs_exist_ok=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2:])
    except KeyboardInterrupt:
        sys.exit("\nstopped; what is done is kept.")
