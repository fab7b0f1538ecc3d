"""The frozen contract of a comparison: what is measured on which prompts, by which judges, with which seeds.

A contract is a file of this package, ``contracts/NUMBER.json``, that never changes; another one gets another number. It
names prompts and judges by the digest of their content, so that an installation that holds others says so instead of
measuring something else under the same number.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dcr_lite.data.rows import read_bytes, read_conversations, read_pairs, read_prompts
from dcr_lite.data.splits import sample
from dcr_lite.errors import UserError
from dcr_lite.files import SHIPPED, load_json
from dcr_lite.judges.versions import judge_version
from dcr_lite.measure.general_ability import HELD_OUT_INSTRUCTIONS
from dcr_lite.settings import Settings

CONTRACTS = Path(__file__).with_name("contracts")
# The version of what the fields of a contract mean to this code: how answers are generated and cut
# (model/generation.py, measure/answers.py), how numbers and intervals follow from verdicts (summary.py), which of the
# stock model's answers methods are read beside (seed_run.KEPT). Raised where a contract would give other numbers.
MEANING = 1


@dataclass(frozen=True)
class Contract:
    """The terms of a comparison.

    number, sha256: of the file. prompts: [{file, sha256, n: {label: prompts}}], files that ship with the kit. rows: at
    most so many prompts of each set and label, None for all. instructions: {file, sha256, n} of the answer loss.
    answer_tokens: of each answer, which stops where its refusal is sure. judges: [{name, sha256}], the first one for
    the main numbers. by_judge, by_model: the names of what is measured, by each judge and without one. tolerance: by
    how much numbers may differ when they are computed again, see ``rerun.py`` and ``recompute.py``.
    """

    number: int
    sha256: str
    prompts: list[dict[str, Any]]
    rows: int | None
    instructions: dict[str, Any]
    answer_tokens: int
    seeds: tuple[int, ...]
    judges: list[dict[str, str]]
    by_judge: tuple[str, ...]
    by_model: tuple[str, ...]
    tolerance: dict[str, dict[str, float]]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of prompts in this installation."""
        return tuple(SHIPPED / prompts["file"] for prompts in self.prompts)

    @property
    def judge_names(self) -> tuple[str, ...]:
        return tuple(judge["name"] for judge in self.judges)

    @property
    def n(self) -> dict[str, int]:
        """How many prompts of each label are measured."""
        return {label: n for prompts in self.prompts for label, n in prompts["n"].items()}

    @cached_property
    def sets(self) -> dict[tuple[str, str], int]:
        """How many prompts of each (label, set) are measured."""
        prompts = sample([prompt for path in self.files for prompt in read_prompts(path)], self.rows)
        return dict(Counter((prompt.label, prompt.source) for prompt in prompts))

    def applied(self, settings: Settings) -> Settings:
        """A recipe's settings with what the contract fixes of them."""
        return replace(settings, evaluation=self.files, answer_tokens=self.answer_tokens)


def read_contract(number: int) -> Contract:
    """The contract of that number. Raises UserError where there is none, where this version of the kit carries out
    another meaning, and where prompts, instructions or judges of this installation are not those of the contract."""
    path = contract_file(number)
    if not path.exists():
        there = ", ".join(sorted(one.stem for one in CONTRACTS.glob("*.json")))
        raise UserError(f"--contract {number}: there is no such contract. Choose from {there}, or install a newer kit.")
    terms = load_json(path)
    if terms.pop("meaning") != MEANING:
        raise UserError(
            f"--contract {number} was written for another version of the kit. Install that, or choose another contract."
        )
    del terms["contract"]
    named: dict[str, Any] = {name: tuple(terms.pop(name)) for name in ("seeds", "by_judge", "by_model")}
    contract = Contract(number=number, sha256=content_digest(path), **named, **terms)
    _require_unchanged(contract)
    return contract


def contract_file(number: int) -> Path:
    """Where a contract is, if there is one."""
    return CONTRACTS / f"{number}.json"


def content_digest(path: Path) -> str:
    """SHA-256 of a text file, the same whatever ends its lines: a checkout on Windows may have changed them."""
    return hashlib.sha256(read_bytes(path).replace(b"\r\n", b"\n")).hexdigest()


def _require_unchanged(contract: Contract) -> None:
    wanted = [(SHIPPED / prompts["file"], prompts["sha256"]) for prompts in contract.prompts]
    wanted.append((HELD_OUT_INSTRUCTIONS, contract.instructions["sha256"]))
    for path, digest in wanted:
        if content_digest(path) != digest:
            raise UserError(
                f"{path} is not the file of contract {contract.number}: it was changed since. Install the kit "
                "again, or the version that the contract came with."
            )
    for judge in contract.judges:
        if judge_version(judge["name"]) != judge["sha256"]:
            raise UserError(
                f"the judge {judge['name']} is not that of contract {contract.number}: it was changed since. Install "
                "the version of the kit that the contract came with."
            )


def require_no_contradiction(contract: Contract, flags: dict[str, Any]) -> None:
    """Raises UserError where a flag that was given (not None, not empty) asks for something else than the contract.

    flags: values by the names of ``compare``'s flags, of those among seeds, prompts, benchmarks, rows, multiple_choice
    and judge.
    """
    fixed = {
        "seeds": contract.seeds,
        "prompts": contract.files,
        "benchmarks": None,
        "rows": contract.rows,
        "multiple_choice": None,
        "judge": contract.judge_names,
    }
    for name, value in flags.items():
        if value not in (None, (), fixed[name]):
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{flag} {_words(value)} contradicts contract {contract.number}, which fixes {_words(fixed[name])}. "
                f"Leave {flag} out, or --contract."
            )


def require_unseen(contract: Contract, settings: Settings) -> None:
    """Raises UserError where a prompt of the contract is among the rows that a recipe trains on or chooses by, word for
    word. settings: the recipe's, resolved."""
    held_out = {prompt.prompt for path in contract.files for prompt in read_prompts(path)}
    pairs, *files = (*settings.files.values(), settings.augmentation_rows)
    texts = {pairs: [text for pair in read_pairs(pairs) for text in (pair.toxic, pair.seemingly_toxic)]}
    texts |= {path: [row.prompt for row in read_conversations(path)] for path in files}
    for path, prompts in texts.items():
        if seen := held_out & set(prompts):
            raise UserError(
                f"{path}: {len(seen)} of its prompts are among those that contract {contract.number} measures. Take "
                "them out of the training rows."
            )


def _words(value: Any) -> str:
    if value is None:
        return "none"
    return " ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
