"""Pairs and refusals that have joined those of a run after it began: RUN/joined.json, whole or absent. Whatever goes on
with the run, or turns its dial, takes them from there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcr_lite.data.near import normalised
from dcr_lite.data.rows import Conversation, Pair
from dcr_lite.files import damaged, read_state, write_state
from dcr_lite.run.inputs import Data

FILE = "joined.json"
CURE = "Restore it: the run rests on it."


@dataclass(frozen=True)
class Joined:
    """training: pairs that stage 1 and the dial learn from. development: pairs that neither does, by which they are
    chosen. refusals: what stage 2 learns beside those that it draws."""

    training: Sequence[Pair]
    development: Sequence[Pair]
    refusals: Sequence[Conversation] = ()

    def save(self, run: Path) -> None:
        """Write RUN/joined.json."""
        pairs = {"training": self.training, "development": self.development}
        sides = {name: [[pair.toxic, pair.seemingly_toxic] for pair in some] for name, some in pairs.items()}
        write_state(sides | {"refusals": [[row.prompt, row.response] for row in self.refusals]}, run / FILE)


def has_joined(run: Path) -> bool:
    """Whether pairs have joined the run in this folder."""
    return (run / FILE).exists()


def with_joined_counted(report: dict[str, Any], run: Path) -> dict[str, Any]:
    """The report of the run in this folder; one that was written before pairs that have joined were counted by
    themselves has them among the others."""
    if not has_joined(run) or "joined_pairs" in report["data"]:
        return report
    n = len(read_state(run / FILE, CURE)["training"])
    return report | {"data": report["data"] | {"pairs": report["data"]["pairs"] - n, "joined_pairs": n}}


def with_joined(run: Path, data: Data) -> Data:
    """The data of the run in this folder, with the pairs that have joined it behind its own and the refusals beside
    them, and without development pairs of which a side has joined: nothing is chosen by what is trained on. Raises
    UserError where the file is damaged."""
    if not has_joined(run):
        return data
    sides = read_state(run / FILE, CURE)
    try:
        found = {name: [Pair(str(a), str(b)) for a, b in sides[name]] for name in ("training", "development")}
        told = sides.get("refusals", [])  # none in a run that began before there were any
        refusals = [Conversation(str(prompt), str(response), refuses=True) for prompt, response in told]
    except (LookupError, TypeError, ValueError):
        raise damaged(run / FILE, CURE) from None
    learnt = {normalised(side) for pair in found["training"] for side in (pair.toxic, pair.seemingly_toxic)}
    learnt |= {normalised(row.prompt) for row in refusals}
    unseen = [
        pair for pair in data.development if not learnt & {normalised(pair.toxic), normalised(pair.seemingly_toxic)}
    ]
    return replace(
        data,
        training=[*data.training, *found["training"]],
        development=[*unseen, *found["development"]],
        joined=len(found["training"]),
        joined_refusals=refusals,
    )
