"""Damaged files: after a kill a file is changed by a bit, cut off or removed. What goes on ends in a sentence that says
which file it is and how to go on, or as if nothing had been. Nothing wrong is taken for right."""

import random
import re
from functools import partial
from pathlib import Path

from tests.faults import faults, forks
from tests.faults.kills import DONE, Undisturbed, differences
from tests.faults.scenes import left
from tests.faults.troubles import Tried

DAMAGES = ("a bit flipped", "cut off", "removed")
# Without a digest: numbers for a curve, texts, and what an earlier command has finished for people to read.
UNCHECKED = ("metrics.jsonl", "report.json", "answers.jsonl", "settings.json", "/answers/", "tokenizer", ".jinja")
CLEARED = re.compile(r"[Dd]elete (\S+?)[,.]? to ")


def damaged(undisturbed: Undisturbed, folder: Path, chance: random.Random) -> Tried:
    """A trial in ``folder``, which is made."""
    scene = undisturbed.scene
    folder.mkdir()
    scene.prepare(folder)
    brought = {path for path in folder.rglob("*") if path.is_file()}
    forks.run(scene.argv, folder, partial(faults.kill_at_operation, chance.randint(1, undisturbed.operations)))
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    files = [path for path in files if ".partial" not in path.name and not path.name.endswith((".lock", ".png", ".md"))]
    if not files:  # it was killed before the first
        return Tried("damaged file", scene.name, None)
    hurt, how = chance.choice(files), chance.choice(DAMAGES)
    whole = hurt.read_bytes()
    _hurt(hurt, how, chance)
    what = f"{hurt.relative_to(folder)} {how}"
    ended = forks.run(scene.again, folder)
    was_done = ended.in_a_sentence and any(said in ended.said for said in DONE)
    if ended.code and not ended.in_a_sentence:
        return Tried("damaged file", scene.name, f"{what}: ended with {ended.code}: {ended.said[-1500:]}")
    if ended.code and not was_done:
        _follow(ended.said, hurt, whole, folder)
        ended = forks.run(scene.again, folder)
        if ended.code:
            return Tried("damaged file", scene.name, f"{what}: then {ended.code}: {ended.said[-1500:]}")
    if (hurt in brought or was_done) and hurt.parent.exists():  # a checkpoint that a kill had left is removed
        hurt.write_bytes(whole)  # it is not for this command to mend
    found = differences(left(folder, scene), undisturbed.left)
    different = [name for name in found if name.split(" is ")[0] != str(hurt.relative_to(folder))]  # never read again
    silent = different and not any(name in str(hurt) for name in UNCHECKED)
    return Tried("damaged file", scene.name, f"{what}: other files: {different}" if silent else None)


def _hurt(path: Path, how: str, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if how == "removed":
        path.unlink()
        return
    place = chance.randrange(len(data))
    if how == "cut off":
        data = data[:place]
    else:
        data[place] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def _follow(said: str, hurt: Path, whole: bytes, folder: Path) -> None:
    """Do what the message says: delete the file that it names, or put back what is damaged."""
    if "elete" not in said:
        hurt.write_bytes(whole)
        return
    words = " ".join(said.split())
    found = CLEARED.search(words)
    named = Path(found[1]) if found and found[1] != "it" else Path(re.findall(r"error: (\S+) is missing", words)[-1])
    (folder / named).unlink(missing_ok=True)
