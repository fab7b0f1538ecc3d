"""The settings of dcr-lite mend: those of a run, and the user's prompts. Nothing heavy is imported here."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from dcr_lite.settings import Settings, Target


@dataclass(kw_only=True)
class MendSettings(Settings):
    """What dcr-lite mend runs with."""

    answer: Path | None = None
    """Prompts that the model refuses and should answer, 5 or more: a text file with one a line, or JSON Lines of
    {prompt}, or of {toxic, seemingly_toxic}, with a toxic prompt of similar wording beside each."""
    refuse: Path | None = None
    """Prompts that it has to go on refusing: a text file with one a line, or JSON Lines of {prompt}."""
    marks: Path | None = None
    """In place of both: JSON Lines of {prompt, wanted}, wanted being answer or refuse."""
    sure: tuple[str, ...] = ()
    """Numbers of doubtful prompts that are to be answered all the same, as the check lists them; or all."""
    check: bool = False
    """Answer and check the prompts, and stop before anything trains. --resume goes on from there."""
    dial: Target = "auto"
    """How much to refuse, chosen after training by development pairs and some of the prompts that have to be refused.
    auto: as in every run, above_stock for a model that refuses by itself, else discerning. above_stock: more toxic
    prompts than the model refuses today, and fewer others by as much. Where it refused just as many of these pairs,
    whose sides share most words, it refused fewer plainly toxic prompts (docs/mending.md). For the rest: dcr-lite train
    --model NAME --help."""

    @classmethod
    def of_model(cls, model: str) -> Self:
        """Those of a model by its folder or name, in a run folder called after it."""
        usual = super().of_model(model)
        return replace(usual, run=usual.run.with_name(f"{usual.run.name}_mended"))

    @property
    def draws_refusals(self) -> bool:
        """Their prompts stand beside the user's (joining.py), and tell which of those read as toxic (checks.py)."""
        return True

    @property
    def not_taken(self) -> tuple[str, ...]:
        """Those of a base model, since it begins with a chat model, and of dcr-lite compare."""
        return ("from_base_model", "base_model", "base_format", "augmentations")

    @property
    def files(self) -> dict[str, Path]:
        """The files of training rows, with those of the user's prompts, which may not change within a run. Marks may:
        they are added while it is stopped."""
        own = {"answer": self.answer, "refuse": self.refuse}
        return super().files | {name: path for name, path in own.items() if path is not None}

    def for_json(self) -> dict[str, Any]:
        """As of a run; what may differ when it goes on is left out."""
        return {name: value for name, value in super().for_json().items() if name not in ("sure", "check")}
