"""What speaks against a run's model: a sentence in its folder, which whoever would use the model reads first."""

from pathlib import Path

from dcr_lite.files import write_text

FILE = "caution.txt"


def caution_of(run: Path) -> str:
    """The sentence, empty where nothing speaks against the model."""
    path = run / FILE
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def set_caution(run: Path, sentence: str) -> None:
    """Leave a sentence in the folder, or with an empty one none."""
    if sentence:
        write_text(run / FILE, sentence + "\n")
    else:
        (run / FILE).unlink(missing_ok=True)
