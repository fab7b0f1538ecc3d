"""Claims about benchmarks/exports.py: each export is opened as its user opens it, and one that answers with another
model, or in another template, shows."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import exports
import pytest

from dcr_lite.errors import UserError
from dcr_lite.export.command import FinishedRun
from dcr_lite.files import load_json, load_jsonl


@pytest.fixture(scope="module")
def choices(dialled_run: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> exports.Exports:
    """Eight prompts, answered by DCR of the tiny run, its dial set."""
    out, prompts = tmp_path_factory.mktemp("exports"), (rows / "held_out.jsonl",)
    return exports.Exports(model=str(dialled_run), prompts=prompts, answer_tokens=12, out=out)


def agreeing(choices: exports.Exports, form: str) -> int:
    """How many of the eight answers begin as those of transformers: as texts, since a tiny model's broken characters
    have other tokens where they come as text. None is short."""
    ours, reference = (load_jsonl(choices.out / f"dcr-{name}.jsonl") for name in (form, "transformers"))
    assert len(ours) == len(reference) == 8
    pairs = [(own["response"], theirs["response"]) for own, theirs in zip(ours, reference, strict=True)]
    return sum(len(own) > 8 and theirs.startswith(own) for own, theirs in pairs)


def needs(form: str) -> None:
    if form == "ollama":
        pytest.importorskip("xllamacpp", reason="llama.cpp's wheel (xllamacpp) is not installed here")
    if form == "space":
        pytest.importorskip("gradio", reason="the demo needs the extra: pip install 'dcr-lite[demo]'")


@pytest.mark.parametrize("form", ["merged", "merged-float32", "ollama", "space"])
def test_each_export_answers_as_the_run(form: Any, choices: exports.Exports) -> None:
    """All prompts but at most one, which rounding may change, are answered as the reference answers; the table has a
    line for both, with the size of the export, which is gone."""
    needs(form)
    lines = [line.split(" | ") for line in exports.main(replace(choices, exports=(form,))).splitlines()[2:]]
    assert [line[:2] for line in lines] == [["| DCR", "transformers"], ["| DCR", form]]
    assert load_json(choices.out / f"dcr-{form}.json")["bytes"] > 100_000
    assert agreeing(choices, form) >= 7
    assert not [path for path in choices.out.iterdir() if path.is_dir()]


def base_weights(run: FinishedRun, folder: Path) -> None:
    shutil.copyfile(Path(run.report["model"]) / "model.safetensors", folder / "model.safetensors")


def other_template(run: FinishedRun, folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")


@pytest.mark.parametrize("damage", [base_weights, other_template])
def test_merged_weights_that_are_others_show(
    damage: Callable[[FinishedRun, Path], None],
    choices: exports.Exports,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The base without the adapter, or a folder with another chat template, answers otherwise."""
    export = exports.export_merged

    def damaged(run: FinishedRun, folder: Path) -> None:
        export(run, folder)
        damage(run, folder)

    monkeypatch.setattr(exports, "export_merged", damaged)
    of = replace(choices, exports=("merged",), out=tmp_path)
    exports.main(of)
    assert agreeing(of, "merged") <= 4


def test_another_template_of_ollama_shows(
    choices: exports.Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What llama.cpp gets is the text of the Modelfile's template, not of the file's own."""
    needs("ollama")
    read = exports.read_modelfile
    bare = "{{ range $i, $_ := .Messages }}{{ .Content }}{{ end }}"
    monkeypatch.setattr(exports, "read_modelfile", lambda path: replace(read(path), template=bare))
    of = replace(choices, exports=("ollama",), out=tmp_path)
    exports.main(of)
    assert agreeing(of, "ollama") <= 4


def test_only_a_space_has_the_other_models(choices: exports.Exports, tmp_path: Path) -> None:
    """Of the stock model there are no merged weights to measure. Answers are no longer than a Space's, and a model that
    is no run has no exports."""
    of = replace(choices, methods=("base", "dcr"), exports=("merged",), out=tmp_path)
    lines = [line.split(" | ")[:2] for line in exports.main(of).splitlines()[2:]]
    titles = ["| stock model", "| DCR", "| DCR"]
    assert lines == [[*pair] for pair in zip(titles, ["transformers", "transformers", "merged"], strict=True)]
    with pytest.raises(UserError, match="end after 80 tokens"):
        exports.main(replace(choices, answer_tokens=81))
    with pytest.raises(UserError, match="no such run folder"):
        exports.main(replace(choices, model=str(tmp_path / "none")))
