"""What a probing keeps: the verdicts of every model and probe that is finished, the answers, the stock model's answers
that prefixes are taken from. So the same command continues a stopped probing, and further probes and models join it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from dcr_lite.compare.seed_run import Cost
from dcr_lite.data.rows import Prompt
from dcr_lite.data.splits import digest_of
from dcr_lite.errors import UserError
from dcr_lite.files import damaged, read_state, write_jsonl, write_state
from dcr_lite.measure.answers import Measured, read_answers
from dcr_lite.probe.numbers import verdicts
from dcr_lite.probe.prefilling import StockAnswer
from dcr_lite.probe.probes import PROBES, Facts, Probe
from dcr_lite.probe.subjects import Subject

CURE = "Delete it to have it measured again."
VERSION = 4  # of what is kept of an answer
# Of a model and a probe: model, method, title, seed, digest, made_of, note, probe, facts, seconds, verdicts.
Part = dict[str, Any]


class Kept:
    """The folder of a probing, such as RUN/probes: parts/MODEL/PROBE.json, answers/MODEL/PROBE.jsonl (private: contains
    answers to toxic prompts), and the tables that are made of them."""

    def __init__(
        self,
        folder: Path,
        model: str,
        prompts: list[Prompt],
        answer_tokens: int,
        seed: int,
        numbers: str,
    ):
        """Begin, or continue what is there. model: the base model by its name. numbers: the precision that it computes
        in, and its 4-bit weights. Raises UserError where that was begun
        with other inputs."""
        self.folder = folder
        inputs = {
            "version": VERSION, "model": model, "prompts": digest_of(prompts), "answer tokens": answer_tokens,
            "seed": seed, "numbers": numbers,
        }  # fmt: skip
        path = folder / "inputs.json"
        begun = read_state(path, f"Delete {folder} to probe anew.") if path.exists() else inputs
        if changed := [name for name, value in inputs.items() if begun.get(name) != value]:
            raise UserError(
                f"{folder} was begun with other inputs ({', '.join(changed)}). Restore them, choose another --out, or "
                "delete it to probe anew."
            )
        write_state(inputs, path)

    def _part(self, subject: Subject, probe: Probe) -> Path:
        return self.folder / "parts" / subject.name / f"{probe.name}.json"

    def answers_file(self, subject: Subject, probe: Probe) -> Path:
        """Where the answers are. Private: contains answers to toxic prompts."""
        return self.folder / "answers" / subject.name / f"{probe.name}.jsonl"

    def has(self, subject: Subject, probe: Probe) -> bool:
        """Whether a model is measured under a probe. Raises UserError where another one of this name was: it has been
        trained anew, or its dial turned, since."""
        path = self._part(subject, probe)
        if not path.exists():
            return False
        state = read_state(path, CURE)
        if state.get("digest") != subject.digest(state.get("made_of", [])):
            raise UserError(
                f"{path} is of another {subject.title}: it was trained, or its dial turned, since. Choose another "
                f"--out, or delete {path.parent} to probe it anew."
            )
        return True

    def keep(
        self, subject: Subject, probe: Probe, answers: list[Measured], facts: Facts, seconds: float, cost: Cost
    ) -> None:
        """Note that a model is measured under a probe. cost: what its subject gives ``within``."""
        write_jsonl(answers, self.answers_file(subject, probe))
        about = {"model": subject.name, **{name: getattr(subject, name) for name in ("method", "title", "seed")}}
        about |= {"digest": subject.digest(cost.parts), "made_of": list(cost.parts), "note": cost.note}
        found = {"probe": probe.name, "facts": facts, "seconds": seconds, "verdicts": verdicts(answers)}
        write_state(about | found, self._part(subject, probe))

    def answers(self, subject: Subject, probe: Probe) -> list[Measured]:
        """The answers of a measured model. Raises UserError where they are gone, or not those of its verdicts."""
        path, part = self.answers_file(subject, probe), self._part(subject, probe)
        cure = f"Delete {part} to have them given again."
        if not path.exists():
            raise damaged(path, cure)
        rows = read_answers(path, cure)
        try:
            whole = verdicts(rows) == read_state(part, CURE)["verdicts"]
        except LookupError:
            whole = False
        if not whole:
            raise damaged(path, cure)
        return rows

    def parts(self) -> list[Part]:
        """Everything that is measured, the probes of a model in their order."""
        order = list(PROBES)
        found = [read_state(path, CURE) for path in sorted((self.folder / "parts").glob("*/*.json"))]
        return sorted((part for part in found if part["probe"] in PROBES), key=lambda part: order.index(part["probe"]))

    def stock_answers(self) -> list[StockAnswer] | None:
        """How the stock model answers the prompts; None where that is not known yet."""
        path = self.folder / "answers" / "stock_prefixes.json"
        if not path.exists():
            return None
        try:
            return [StockAnswer(**one) for one in read_state(path, CURE)["answers"]]
        except (TypeError, LookupError):
            raise damaged(path, CURE) from None

    def keep_stock_answers(self, answers: list[StockAnswer]) -> None:
        """Keep them."""
        path = self.folder / "answers" / "stock_prefixes.json"
        write_state({"answers": [asdict(one) for one in answers]}, path)
