"""The leaderboard from submissions of dcr-lite compare --contract.

    python benchmarks/leaderboard.py docs/submissions/*.json --out docs/leaderboard.md

Every file is checked as dcr-lite verify checks it without a model; one that is at fault is named and left out. A line
for each method of each submission, the highest J first, by the contract's first judge; behind them those that do not
apply to their model.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from dcr_lite.compare.findings import Finding
from dcr_lite.compare.submission import Entry, Submission, Value
from dcr_lite.compare.summary import applies
from dcr_lite.compare.verify_command import Asked, verify
from dcr_lite.errors import UserError
from dcr_lite.files import load_json, write_text
from dcr_lite.run.report import code, markdown_table, plain

PAGE = """# Leaderboard

Methods measured under a frozen contract ([what it fixes](comparing.md#a-frozen-contract)), from the `submission.json`
files of whoever measured them. benchmarks/leaderboard.py makes this page and checks that every file agrees with itself;
the answers behind the numbers are not published, so a line is what its submitter says until somebody repeats it
([how](comparing.md#dcr-lite-verify)).

{body}
"""
NONE = """No submissions yet: this page is a frame. To be the first:

    dcr-lite compare --contract 1 --recipe smollm2_135m --by "Your name" --out runs/contract
    dcr-lite verify runs/contract/submission.json
    python benchmarks/leaderboard.py runs/contract/submission.json --out docs/leaderboard.md"""
TABLE = """J is safety + compliance - 1 by the contract's first judge, J 2 by its second. A number is the mean over the
contract's seeds with a 95 % interval (Student); over prompts for what is measured once, as the stock model is. A method
that does not apply to its model, as noted below, stands behind the others.

{table}

Commands:

{commands}"""
HEAD = [
    "",
    "method",
    "model",
    "J ↑",
    "J 2 ↑",
    "compliance ↑",
    "safety ↑",
    "AUROC ↑",
    "kept ↑",
    "contract",
    "by",
    "hardware",
]


@dataclass
class Choices:
    """Which submissions, and where to."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """submission.json files."""
    out: Path = Path("docs/leaderboard.md")
    """The page."""


def faults(path: Path) -> list[Finding]:
    """What dcr-lite verify finds at fault."""
    try:
        return [finding for finding in verify(Asked(path)) if finding.state == "differs"]
    except UserError as error:  # torn, or of a contract that this installation cannot carry out
        return [Finding("differs", str(error))]


def page(submissions: list[Submission]) -> str:
    """The page of submissions that agree with themselves."""
    if not submissions:
        return PAGE.format(body=NONE)
    lines = [(number, one, entry) for number, one in enumerate(submissions, 1) for entry in one["methods"]]
    lines.sort(key=lambda line: (not _applies(line[2]), -_main(line[2], 0)["j"]["mean"]))
    rows = [_row(*line) for line in lines]
    commands = []
    for number, one in enumerate(submissions, 1):
        commands.append(f"{number}. {code(one['command'])}, {one['date']}")
        notes = dict.fromkeys((e["title"], p["note"]) for e in one["methods"] for p in e["points"] if p["note"])
        commands += [f"   - {plain(title)}: {plain(note)}" for title, note in notes]
    return PAGE.format(body=TABLE.format(table=markdown_table(HEAD, rows), commands="\n".join(commands)))


def _applies(entry: Entry) -> bool:
    """With every seed, by the notes."""
    return all(applies(point["note"]) for point in entry["points"])


def _main(entry: Entry, judge: int) -> dict[str, Value]:
    """The numbers by a judge of the contract, by its place."""
    of_judges = list(entry["judges"].values())
    return of_judges[judge] if judge < len(of_judges) else {}


def _row(number: int, submission: Submission, entry: Entry) -> list[str]:
    first = _main(entry, 0)
    numbers = [first["j"], _main(entry, 1).get("j"), first["compliance"], first["safety"]]
    numbers += [entry["numbers"].get(name) for name in ("auroc", "kept_seemingly_toxic")]
    title = plain(entry["title"]) + (" (added)" if entry["origin"] == "added" else "")
    title += "" if _applies(entry) else " (does not apply)"
    return [
        str(number), title, plain(submission["model"]["name"]), *map(_cell, numbers),
        str(submission["contract"]["number"]), plain(submission["by"]) or "-", plain(submission["hardware"]["kind"]),
    ]  # fmt: skip


def _cell(value: Value | None) -> str:
    if value is None:
        return "-"
    if value["ci95"] is None:
        return f"{value['mean']:.2f}"
    return f"{value['mean']:.2f} ({value['ci95'][0]:.2f} to {value['ci95'][1]:.2f})"


def main(choices: Choices) -> str:
    submissions: list[Any] = []
    for path in choices.files:
        if found := faults(path):
            print(f"{path} is left out: {found[0].text}" + (f", and {len(found) - 1} more" if found[1:] else ""))
        else:
            submissions.append(load_json(path))
    text = page(submissions)
    write_text(choices.out, text)
    return text


if __name__ == "__main__":
    main(tyro.cli(Choices, description=__doc__))
