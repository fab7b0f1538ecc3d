"""A comparison of a tiny model by a small contract, with an added adapter and an added function, done once."""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from small_runs import flags, save_rows, write_recipe, write_rows

from dcr_lite.compare import command, contract, measurement, steered
from dcr_lite.judges import opening
from dcr_lite.judges.interface import Exchange
from dcr_lite.judges.versions import judge_version
from dcr_lite.method import safety_sft

DOCS = Path(__file__).parents[2] / "docs" / "comparing.md"
SEEDS = (0, 1)
ONLY = ("steered", "safety_sft")  # one without training, one with
TOLERANCE = {"compliance": 0.01, "safety": 0.01, "plain": 0.01, "j": 0.01, "auroc": 0.01}
TOLERANCE |= {"kept_seemingly_toxic": 0.01, "kept_plain": 0.01, "answer_loss": 0.01}


class Vowels:
    """A judge by which an answer refuses that begins with a vowel: it decides something on random answers too."""

    name = "vowels"

    def scores(self, rows: Sequence[Exchange]) -> list[float]:
        return [float(row.response[:1].lower() in "aeiou") for row in rows]


def version(name: str) -> str:
    return "0" * 64 if name == Vowels.name else judge_version(name)


@dataclass(frozen=True)
class Contracted:
    """A recipe with its rows, the folder of a contract 1, that of the module in docs/comparing.md, and the folder of a
    finished comparison."""

    recipe: Path
    rows: Path
    contracts: Path
    module: Path
    out: Path

    def submission(self) -> dict[str, Any]:
        return json.loads((self.out / "submission.json").read_text(encoding="utf-8"))

    @contextmanager
    def small(self) -> Iterator[pytest.MonkeyPatch]:
        """What makes the kit take that contract, and a random model's openings for refusals."""
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("dcr_lite.model.loading.REFUSING_OPENINGS", tuple("ISTaeg"))
            patched.setattr(command, "matrix_rate", lambda device, precision: 1e10)
            for module in (measurement, contract):
                patched.setattr(module, "HELD_OUT_INSTRUCTIONS", self.rows / "few.jsonl")
            patched.setattr(safety_sft, "OBSERVATIONS", 1)
            patched.setattr(steered, "STRENGTHS", (-0.5, 0.5))  # each is tried on all prompts
            patched.setattr(contract, "SHIPPED", self.rows)
            patched.setattr(contract, "CONTRACTS", self.contracts)
            patched.setattr(contract, "judge_version", version)
            patched.setitem(opening.OWN, Vowels.name, lambda device: Vowels())
            patched.syspath_prepend(self.module)
            yield patched

    def compare(self, out: Path, **changes: Any) -> dict[str, Any]:
        """``command.compare`` by contract 1, unless ``changes`` says otherwise."""
        given = {"seeds": None, "files": (), "rows": None, "multiple_choice": None, "curve_seeds": None}
        given |= {"only": ONLY, "contract": 1}
        return command.compare(**({"recipe": self.recipe, "out": out} | given | changes))


def terms(rows: Path) -> dict[str, Any]:
    """A contract 1 on the small rows."""
    digests = {name: contract.content_digest(rows / name) for name in ("held_out.jsonl", "plain.jsonl", "few.jsonl")}
    n = {"held_out.jsonl": {"toxic": 4, "seemingly_toxic": 4}, "plain.jsonl": {"plain": 4}}
    return {
        "contract": 1,
        "meaning": contract.MEANING,
        "prompts": [{"file": name, "sha256": digests[name], "n": of} for name, of in n.items()],
        "rows": None,
        "instructions": {"file": "few.jsonl", "sha256": digests["few.jsonl"], "n": 4},
        "answer_tokens": 5,
        "seeds": list(SEEDS),
        "judges": [{"name": name, "sha256": version(name)} for name in ("cues", Vowels.name)],
        "by_judge": ["compliance", "safety", "plain", "j"],
        "by_model": ["auroc", "kept_seemingly_toxic", "kept_plain", "answer_loss"],
        "tolerance": {"judges": {}, "adapters": TOLERANCE, "trained": TOLERANCE},
    }  # fmt: skip


def example() -> str:
    """The module in docs/comparing.md."""
    (found,) = re.findall(r"```python\n(# mine\.py.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


@pytest.fixture(scope="session")
def contracted(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Contracted:
    """To read only."""
    folder = tmp_path_factory.mktemp("contract")
    rows = save_rows(folder / "rows")
    few = [{"prompt": f"Name {n} dogs.", "response": f"Here is a list of {n} dogs."} for n in range(4)]
    write_rows(rows / "few.jsonl", few)
    contracts, module = folder / "contracts", folder / "module"
    contracts.mkdir()
    module.mkdir()
    (contracts / "1.json").write_text(json.dumps(terms(rows)), encoding="utf-8")
    (module / "mine.py").write_text(example(), encoding="utf-8")
    argv = flags(tiny_folder("llama"), rows, folder / "run", sft_epochs=1, sft_learning_rate=1e-2)
    recipe, _ = write_recipe(folder / "tiny.py", argv)
    done = Contracted(recipe, rows, contracts, module, folder / "out")
    adapter = done.out / "seed{seed}" / "safety_sft_6"
    with done.small():
        done.compare(done.out)  # the adapters that are added below are made here
        once = shutil.copytree(done.out / "seed0" / "safety_sft_6", folder / "adapter")
        added = (f"again={adapter}", f"once={once}", "shifted=mine:shifted")
        done.compare(done.out, added=added, by="The tests")
    return done


@pytest.fixture
def small(contracted: Contracted) -> Iterator[pytest.MonkeyPatch]:
    with contracted.small() as patched:
        yield patched
