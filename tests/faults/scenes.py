"""The commands that trials disturb, each on a tiny model: how it is started, how it goes on, and what it leaves."""

import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tiny_models
import tyro
from safetensors import safe_open
from small_runs import RECIPE, flags, recipe_module, save_rows, write_rows

from dcr_lite.settings import Settings
from tests.faults import forks

FEW = {"contrastive_steps": 16, "sft_epochs": 2, "development_pairs": 4, "answer_tokens": 4}
# Seconds and bytes of memory, which no two runs share, and digests of what holds them. All else has to be the same.
MEASURED = {
    "sha256", "seconds", "peak_memory_bytes", "minutes", "peak_memory_gb", "answer_seconds", "first_token_ms",
    "token_ms",
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A command to disturb.

    argv: its words, in the folder of the trial. again: those that go on where it was stopped. prepare: puts into that
    folder what has to be there before. leaves: the files and folders that it writes. changes: those of what was there
    before that it writes anew.
    """

    name: str
    argv: list[str]
    again: list[str]
    leaves: tuple[str, ...]
    prepare: Callable[[Path], None] = field(default=lambda folder: None)
    changes: tuple[str, ...] = ()


class World:
    """A folder with a tiny model, rows, a finished run and a recipe to compare methods on, and the scenes on them.
    few: settings that keep them small."""

    def __init__(self, folder: Path, few: dict[str, Any] = FEW):
        self.folder, self.model, self.few = folder, folder / "model", few
        tiny_models.save_tiny(self.model, "llama", {})
        self.rows = save_rows(folder / "rows")
        sounding = [{"prompt": f"How do I hurt a {t} joke?", "response": f"Here is a {t}."} for t in ("cat", "man")]
        self.extra = write_rows(self.rows / "augmentation.jsonl", sounding)
        self.asked = write_rows(
            self.rows / "asked.jsonl", [{"prompt": f"Name {n} dogs.", "response": f"{n} dogs."} for n in range(4)]
        )
        self.questions = write_rows(
            self.rows / "questions.jsonl",
            [{"question": f"Is {n} odd?", "choices": ["no", "yes"], "answer": n % 2} for n in range(3)],
        )

    def train(self, **changes: Any) -> list[str]:
        """The words that train the tiny model in the folder run."""
        return ["train", str(RECIPE), *flags(self.model, self.rows, Path("run"), **self.few | changes)]

    def mend(self) -> list[str]:
        """The words that mend it there, with a dial."""
        asked = self.folder / "answer.txt"
        asked.write_text("\n".join(f"How do I hit {n} of the cats?" for n in "12345678"))
        few = {"contrastive_steps": 8, "stage2": "no", "dial": "above_stock", "answer": asked, "sure": "all"}
        few |= {"compare_with": (), "refusal_rows": self.rows / "refusals.jsonl"}
        return ["mend", *flags(self.model, self.rows, Path("run"), **self.few | few)]

    @cached_property
    def finished(self) -> Path:
        """A finished run, to copy."""
        folder = self.folder / "finished"
        folder.mkdir()
        ended = forks.run(self.train(), folder)
        assert ended.code == 0, ended.said
        return folder / "run"

    @cached_property
    def recipe(self) -> Path:
        """A recipe with the same settings, to compare methods on."""
        argv = flags(self.model, self.rows, Path("run"), augmentation_rows=self.extra, augmentations=2, **self.few)
        settings = tyro.cli(Settings, default=recipe_module().SETTINGS, args=argv)
        path = self.folder / "tiny.py"
        path.write_text(
            "from pathlib import Path, PosixPath\nfrom dcr_lite.compare import measurement\n"
            f"from dcr_lite.settings import Settings\nmeasurement.HELD_OUT_INSTRUCTIONS = Path({str(self.asked)!r})\n"
            f"SETTINGS = {settings!r}\ndef main(settings): ...\n"
        )
        return path

    @cached_property
    def scenes(self) -> dict[str, Scene]:
        """Every command that is disturbed, by its name."""

        def bring(folder: Path) -> None:
            shutil.copytree(self.finished, folder / "run")

        measured = ["--prompts", self.rows / "held_out.jsonl", "--instructions", self.asked]
        measured += ["--multiple-choice", self.questions, "--answer-tokens", 4, "--precision", "float32"]
        words: dict[str, tuple[list[Any], tuple[str, ...]]] = {
            "evaluate": (["evaluate", "--model", "run", "--out", "measured/result.json", *measured], ("measured",)),
            "compare": (["compare", "--recipe", self.recipe, "--seeds", 0, "--curve-seeds", "--out", "out"], ("out",)),
            "diagnose": (["diagnose", "run", "--pairs", 2, "--projections", 2], ("run",)),
            "probe": (["probe", "run", "--probes", "rot13", "sampling", "--answer-tokens", 4], ("run",)),
            "export to merged": (["export", "run", "--to", "merged"], ("run",)),
            "export to gguf": (["export", "run", "--to", "gguf"], ("run",)),
        }
        scenes = {
            name: Scene(name, words, [*words, "--resume"], ("run",))
            for name, words in (("train", self.train()), ("mend", self.mend()))
        }
        turn = ["dial", "run", "--balanced", "--set"]
        scenes["dial"] = Scene("dial", turn, turn, ("run",), bring, ("run/adapter", "run/report"))
        for name, (argv, leaves) in words.items():
            argv = list(map(str, argv))
            scenes[name] = Scene(name, argv, argv, leaves, (lambda folder: None) if name == "compare" else bring)
        return scenes


def left(folder: Path, scene: Scene) -> dict[str, Any]:
    """Every file that a scene has left by its name, as bytes without what was measured with a clock or a scale: those
    numbers of JSON files are zeroed, and so are seconds, minutes and gigabytes in pages, whose command loses --resume.
    Of the safetensors files, whose metadata lies in any order, the metadata and the bytes behind it."""
    files = [path for name in scene.leaves for path in sorted((folder / name).rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): _comparable(path) for path in files}


def _comparable(path: Path) -> Any:
    if path.suffix == ".json":
        with suppress(ValueError):  # a damaged one is compared as it is
            return _unmeasured(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".md":
        return _unmeasured_page(path.read_text(encoding="utf-8"))
    if path.suffix == ".safetensors":
        data = path.read_bytes()
        with safe_open(path, "pt") as file:
            return file.metadata(), data[8 + int.from_bytes(data[:8], "little") :]
    return path.read_bytes()


def _unmeasured(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: 0 if k in MEASURED else _unmeasured(v) for k, v in value.items()}
    return [_unmeasured(v) for v in value] if isinstance(value, list) else value


def _unmeasured_page(text: str) -> str:
    text = re.sub(r"\d+(\.\d+)? (s|GB|minutes)\b", r"0 \2", text.replace(" --resume", ""))
    lines = text.split("\n")
    for i, line in enumerate(lines):
        if "| minutes" in line:  # the last two columns of this table
            for k in range(i, len(lines)):
                if not lines[k].startswith("|"):
                    break
                lines[k] = "|".join(lines[k].split("|")[:-3])
    return "\n".join(lines)
