"""What a run shows and leaves behind, and which weights each stage trains."""

import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import pyplot as plt
from peft import PeftModel
from recipe_runs import ENVIRONMENT, Finished, adapter, layer_of, same, small_settings
from safetensors.torch import load_file
from small_runs import BASELINE_STEPS, CONTRASTIVE_STEPS, LAYER, RECIPE, SFT_STEPS, flags, run_here
from tiny_models import LAYERS, assert_close, load_reference
from transformers import AutoTokenizer

from dcr_lite.data.rows import Pair
from dcr_lite.demo.scoring import open_run
from dcr_lite.errors import UserError
from dcr_lite.measure.answers import read_answers, write_answers
from dcr_lite.measure.kinds import KINDS, REFUSING
from dcr_lite.method import safety_sft
from dcr_lite.method.contrastive import OBSERVATIONS as STAGE1_OBSERVATIONS
from dcr_lite.method.contrastive import ContrastiveConfig, encode_pairs, stock_geometry
from dcr_lite.method.read_out import reads_as_toxic
from dcr_lite.names import ONLY_TURNED
from dcr_lite.run import inputs, opening, report, stored_states
from dcr_lite.run.dial_command import turn
from dcr_lite.run.dial_setting import DialSetting
from dcr_lite.settings import Settings

PICTURES = {
    "refusal_rates.png", "refusal_scores.png", "state_map.png", "refusal_during_sft.png", "separation.png"
}  # fmt: skip


def test_help_answers_at_once_without_torch() -> None:
    """--help shows every setting with its sentence, in no time: nothing heavy is imported before it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    command = [sys.executable, "-X", "importtime", str(RECIPE), "--help"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    # Its own time on the processor, so that a busy machine changes nothing: a third of a second, where torch takes 3.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 2
    assert done.returncode == 0
    assert "SmolLM2-135M-Instruct, aligned on one GPU" in done.stdout
    for name in Settings.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "tyro" in imported
    assert not imported & {"torch", "transformers", "peft", "matplotlib", "numpy", "datasets", "sklearn"}


def test_a_run_says_what_it_will_do_then_what_it_found(finished: Finished) -> None:
    """The plan stands before the first progress line; the end shows all three models and where things lie."""
    out = finished.seen.out
    places = [
        out.index(s) for s in ("estimated time", "Stage 1", "Stage 2", "Safety SFT alone:", "Evaluation", "AUROC ↑")
    ]
    assert places == sorted(places)
    assert f"{CONTRASTIVE_STEPS} steps of 8 prompts from 16 pairs, 8 held back" in " ".join(out.split())
    end = out[places[-1] :]
    assert all(name in end for name in ("stock model", "safety SFT alone", "DCR"))
    for name in ("report.md", "report.json", "adapter", "answers"):
        assert str(finished.path / name) in end  # on one line, to be copied
        assert (finished.path / name).exists()


def test_a_run_is_quiet_on_stderr(finished: Finished) -> None:
    """No warnings, no progress bars of libraries: what stands on stderr is worth reading."""
    assert finished.seen.err == ""


def test_report_json_holds_every_number(finished: Finished) -> None:
    """report.json names what ran and holds rates with intervals per set, discernment, seconds, memory, versions."""
    report = finished.report
    assert report["recipe"] == "smollm2_135m"
    assert report["model"].endswith("llama0")
    assert report["seed"] == 0
    assert list(report["methods"]) == ["base", "safety_sft", "dcr"]
    for method in report["methods"].values():
        sets = [(row["name"], row["label"], row["n"]) for row in method["sets"]]
        assert sets == [("held_out", "toxic", 4), ("held_out", "seemingly_toxic", 4), ("plain", "plain", 4)]
        for row in [*method["sets"], *method["overall"].values()]:
            low, high = row["ci95"]
            assert 0 <= low <= row["refusal_rate"] <= high <= 1
            assert list(row["kinds"]) == list(KINDS)
            assert sum(row["kinds"].values()) == pytest.approx(1)
            assert sum(row["kinds"][kind] for kind in REFUSING) == pytest.approx(row["refusal_rate"])
        assert 0 <= method["discernment"]["auroc"] <= 1
        assert -1 <= method["discernment"]["j"] <= 1
    seconds = report["seconds"]
    assert all(seconds[part] > 0 for part in ("stage1", "stage2", "safety_sft", "evaluate", "total"))
    assert sum(v for k, v in seconds.items() if k != "total") <= seconds["total"]
    assert 1e8 < report["peak_memory_bytes"] < 1e11
    assert {"python", "torch", "transformers", "peft", "dcr-lite"} <= report["versions"].keys()
    assert report["settings"]["contrastive_steps"] == CONTRASTIVE_STEPS
    assert report["data"]["pairs"] + report["data"]["development_pairs"] == 24


def test_the_report_says_what_the_seconds_of_a_stage_are(finished: Finished) -> None:
    """Those of its loop: without the states that stage 1 reads before its steps and behind them, which the total
    holds."""
    text = " ".join((finished.path / "report.md").read_text(encoding="utf-8").split())
    time, _, rest = text.split("## Time and memory ")[1].partition(" on ")
    assert f"stage 1 {finished.report['seconds']['stage1']:.0f} s" in time
    assert "are those of its steps and the evaluations between them" in rest
    assert "what is read before and behind them is counted in all alone" in rest


def test_rates_are_those_of_the_answers(finished: Finished) -> None:
    """Each rate in the report can be counted again in the answers that lie beside it."""
    for name, method in finished.report["methods"].items():
        answers = read_answers(finished.path / "answers" / f"{name}.jsonl")
        for row in method["sets"]:
            refused = [a["refused"] for a in answers if (a["source"], a["label"]) == (row["name"], row["label"])]
            assert len(refused) == row["n"]
            assert sum(refused) / len(refused) == row["refusal_rate"]
            kinds = [a["kind"] for a in answers if (a["source"], a["label"]) == (row["name"], row["label"])]
            assert row["kinds"] == {kind: kinds.count(kind) / len(kinds) for kind in KINDS}


def test_answers_kept_stand_beside_the_rates(finished: Finished) -> None:
    """Of every trained model, for both kinds of prompts that should be answered, in report.json, the table, a section
    of its own and at the end of the run; the section is left out where nothing could be kept."""
    methods = finished.report["methods"]
    assert "kept" not in methods["base"]
    stock = read_answers(finished.path / "answers" / "base.jsonl")
    for name in ("safety_sft", "dcr"):
        assert methods[name]["kept"].keys() == {"seemingly_toxic", "plain"}
        for label, of in methods[name]["kept"].items():
            assert of["n"] + of["refused"] + of["empty"] == sum(row["label"] == label for row in stock)
            low, high = of["kept_ci95"]
            assert 0 < low <= of["kept"] <= high
            assert of["divergence"] > 0
    text = (finished.path / "report.md").read_text(encoding="utf-8")
    kept = methods["dcr"]["kept"]
    (row,) = [line for line in text.splitlines() if line.startswith("| DCR | 0") and line.count("|") == 9]
    assert f"| {kept['seemingly_toxic']['kept']:.2f} (" in row
    assert f"| {kept['plain']['kept']:.2f} (" in row
    section = report.kept_section(finished.report)
    assert section in text
    assert section.count("| DCR | plain |") == 1
    end = finished.seen.out[finished.seen.out.index("AUROC ↑") :]
    assert f"{kept['seemingly_toxic']['kept']:.2f}" in next(line for line in end.splitlines() if "DCR" in line)
    assert report.kept_section({"methods": {name: result | {"kept": {}} for name, result in methods.items()}}) == ""


def test_report_md_shows_pictures_that_exist(finished: Finished) -> None:
    """Every picture that report.md shows is a PNG with something on it."""
    text = (finished.path / "report.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", text))
    assert shown == PICTURES
    assert text.startswith(f"# {Path(finished.report['model']).name}\n")  # which is not the recipe's
    for name in shown:
        assert plt.imread(finished.path / name).std() > 0.02
    assert "| DCR |" in text
    rates = finished.report["methods"]["dcr"]["overall"]["toxic"]["kinds"]
    assert f"| DCR | toxic | {' | '.join(f'{100 * rates[kind]:.0f}' for kind in KINDS)} |" in text


def test_metrics_hold_every_step_once(finished: Finished) -> None:
    """metrics.jsonl is JSON Lines: each step of each stage once and in order, observations between them."""
    steps: dict[str, list[int]] = {}
    for row in finished.metrics:
        if "loss" in row:
            steps.setdefault(row["stage"], []).append(row["step"])
    assert steps == {
        "stage1": list(range(1, CONTRASTIVE_STEPS + 1)),
        "stage2": list(range(1, SFT_STEPS + 1)),
        "safety_sft": list(range(1, BASELINE_STEPS + 1)),
    }
    for stage, last, every in (
        ("stage1", CONTRASTIVE_STEPS, -(-CONTRASTIVE_STEPS // STAGE1_OBSERVATIONS)),
        ("stage2", SFT_STEPS, -(-SFT_STEPS // safety_sft.OBSERVATIONS)),
        ("safety_sft", BASELINE_STEPS, -(-BASELINE_STEPS // safety_sft.OBSERVATIONS)),
    ):
        seen = [row["step"] for row in finished.metrics if row["stage"] == stage and "loss" not in row]
        assert seen == [*range(0, last, every), last]


def test_stage_2_refuses_what_stage_1_tells_apart(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """Of the toxic prompts those that read as toxic, while they are enough; without the flag, whatever is drawn."""
    settings = small_settings(tiny, rows, tmp_path / "run", refusals=1)
    data, (model, _) = inputs.load_data(settings), opening.load_model(settings)
    geometry = stock_geometry(model, encode_pairs(model, data.training), ContrastiveConfig.of(settings))
    states = stored_states.compute_states(model, data, settings, geometry)
    assert len(states["dcr.refusals"]) == len(data.refusals)
    # Some of them lie where toxic and some where seemingly toxic sides of training pairs lie.
    states["dcr.refusals"] = states["dcr.reference"].repeat(4, 1)[: 4 * len(data.refusals) : 4]
    toxicity = reads_as_toxic(geometry, states["dcr.reference"], states["dcr.refusals"]).tolist()
    toxic = {row.prompt for row, value in zip(data.refusals, toxicity, strict=True) if value > 0}
    assert 0 < len(toxic) < len(data.refusals)  # a guard: there is something to leave out

    def refused(**changes: Any) -> set[str]:
        chosen = stored_states.stage2_rows(data, replace(settings, **changes), states)
        return {row.prompt for row in chosen if row.refuses}

    assert refused(refusals=len(toxic)) == toxic
    assert refused(refusals=len(toxic) + 1) > toxic
    assert len(refused(refusals=len(data.refusals), discerned_refusals=False)) == len(data.refusals)


def test_stage1_keeps_what_separated_best(finished: Finished) -> None:
    """The weights kept are of the step with the highest development AUROC, which is not the stock model's."""
    best = finished.report["stage1"]
    seen = {row["step"]: row["development_auroc"] for row in finished.metrics if "development_auroc" in row}
    assert seen[best["best_step"]] == best["best"] == max(seen.values())
    assert best["best_step"] > 0


def test_peft_loads_the_adapter(finished: Finished, tiny: Path) -> None:
    """adapter/ is a LoRA adapter as peft reads it: its logits are those of the weights multiplied out by hand, and its
    greedy answers are those that the run measured."""
    loaded = PeftModel.from_pretrained(load_reference(tiny), finished.path / "adapter").eval()
    by_hand, weights = load_reference(tiny), adapter(finished.path)
    for key in [k for k in weights if "lora_A" in k]:
        layer = by_hand.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
        layer.weight.data += weights[key.replace("lora_A", "lora_B")] @ weights[key]
    tokenizer = AutoTokenizer.from_pretrained(finished.path / "adapter")
    with torch.no_grad():
        for row in read_answers(finished.path / "answers" / "dcr.jsonl")[:4]:
            turn = [{"role": "user", "content": row["prompt"]}]
            ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")["input_ids"]
            logits = loaded(input_ids=ids).logits
            assert_close(logits, by_hand(input_ids=ids).logits, 1e-5)
            mask = torch.ones_like(ids)
            said = loaded.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
            text = tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True).strip()
            # A measured answer ends where its verdict is final, perhaps in the middle of a character.
            assert text.startswith(row["response"].rstrip("\ufffd "))
    with torch.no_grad(), loaded.disable_adapter():
        assert (loaded(input_ids=ids).logits - logits).abs().max() > 0.01


def test_the_adapter_is_ready_to_publish(finished: Finished, tiny: Path) -> None:
    """Beside the weights lie the tokenizer with its chat template and a model card with the before-and-after table."""
    card = (finished.path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    head = card.split("---\n")[1]
    assert str(tiny) not in card  # a folder of this machine means nothing to others
    assert "library_name: peft" in head
    assert all(f"| {name} |" in card for name in ("stock model", "safety SFT alone", "DCR"))
    tokenizer = AutoTokenizer.from_pretrained(finished.path / "adapter")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny).chat_template


def test_answers_survive_the_line_separators_of_unicode(tmp_path: Path) -> None:
    """Whatever a model says comes back: U+2028 and U+0085 in an answer are no ends of a row."""
    row = {
        "source": "set",
        "label": "plain",
        "prompt": "p",
        "refused": False,
        "kind": "answer",
        "refusal_log_odds": 0.5,
    }
    said = [
        row | {"response": f"a{c}b"} for c in ("\u2028", "\u2029", "\x85", "\x0c", "\x1c", "\n", "\r\n", "\ufffd", "é")
    ]
    write_answers(said, tmp_path / "answers.jsonl")
    assert read_answers(tmp_path / "answers.jsonl") == said


def test_a_kind_that_cannot_be_is_damage(tmp_path: Path) -> None:
    """One that contradicts its verdict, or is none. The line is not to be removed, since answers are paired."""
    path = tmp_path / "answers.jsonl"
    said = {"source": "set", "label": "plain", "prompt": "Who?", "response": "I can't help.", "refused": True}
    said["refusal_log_odds"] = 0.5
    for kind in ("answer", "sermon", None, ["refusal"]):
        write_answers([said | {"kind": kind}], path)
        with pytest.raises(UserError, match=r"answers\.jsonl, line 1 is damaged\. Restore the file from a copy\.$"):
            read_answers(path)


def test_stage2_leaves_the_layers_up_to_l_alone(finished: Finished) -> None:
    """By default stage 2 trains the adapter above L only: up to L it stays exactly as stage 1 left it; and stage 1
    touches nothing above L, of which its file has nothing."""
    before, after = adapter(finished.path, "stage1"), adapter(finished.path)
    assert same(after, adapter(finished.path, "stage2"))
    assert before.keys() == {key for key in after if layer_of(key) <= LAYER}
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    assert [key for key in after if "lora_B" in key and not after[key].any()] == []  # which begins at zero


def test_sft_on_all_layers_changes_all(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """With --sft-layers all, stage 2 changes every layer of the adapter; a batch larger than all pairs is shown as the
    prompts that there are."""
    short = {"contrastive_steps": 4, "sft_epochs": 1, "contrastive_batch": 100, "compare_with": []}
    done = run_here(flags(tiny, rows, tmp_path / "run", sft_layers="all", **short))
    assert done.code == 0
    assert "4 steps of 32 prompts from 16 pairs" in " ".join(done.out.split())
    before, after = adapter(tmp_path / "run", "stage1"), adapter(tmp_path / "run")
    assert [key for key in before if torch.equal(before[key], after[key])] == []
    assert {layer_of(key) for key in after} == set(range(LAYERS))


def test_another_seed_another_adapter(finished: Finished, tiny: Path, rows: Path, tmp_path: Path) -> None:
    """From its first weights on. That the same seed gives every finding bit for bit is what test_resume.py rests on."""
    stage1_alone = {"contrastive_steps": 4, "stage2": "no", "compare_with": []}
    assert run_here(flags(tiny, rows, tmp_path / "other", seed=1, **stage1_alone)).code == 0
    first, second = (adapter(run, "stage1") for run in (finished.path, tmp_path / "other"))
    for key in first:
        if "lora_A" in key:  # which training hardly moves from where the seed has put it
            assert (first[key] - second[key]).norm() > first[key].norm(), key


def test_half_of_stage_1_stays_where_nothing_is_trained_after_it(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """Each map adds half of what stage 1 has taught it, unless another share is given; plan, report and model card say
    so."""
    short = {"contrastive_steps": 4, "stage2": "no", "compare_with": []}
    assert run_here(flags(tiny, rows, tmp_path / "whole", **short)).code == 0
    done = run_here(flags(tiny, rows, tmp_path / "half", contrastive_share=0, **short))
    assert (done.code, f"-{LAYER} (L); 0.5 of what that changes stays" in " ".join(done.out.split())) == (0, True)
    whole, half = adapter(tmp_path / "whole"), adapter(tmp_path / "half")
    assert any(weight.any() for name, weight in whole.items() if "lora_B" in name)
    for name, weight in whole.items():
        assert torch.equal(half[name], weight / 2 if "lora_B" in name else weight), name
    said = "0.5 of what it changes in the weights stays", "0.5 of whose change stays"
    for run, stated in ((tmp_path / "half", True), (tmp_path / "whole", False)):
        report, card = (" ".join((run / page).read_text().split()) for page in ("report.md", "adapter/README.md"))
        assert (said[0] in report, said[1] in card) == (stated, stated)
    bad = run_here(flags(tiny, rows, tmp_path / "bad", contrastive_share=1.5, **short))
    assert (bad.code, "--contrastive-share 1.5: it takes a number from 0 to 1" in bad.err) == (1, True)


def test_the_papers_own_stage1_runs(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """--paper trains stage 1 with Circle loss on raw states: the same as those three settings by hand."""
    short = {"contrastive_steps": 4, "stage2": "no", "compare_with": []}
    seen = run_here(flags(tiny, rows, tmp_path / "paper", paper=True, **short))
    assert seen.code == 0
    assert "circle on raw states (the paper's)" in " ".join(seen.out.split())
    by_hand = flags(tiny, rows, tmp_path / "hand", contrastive_loss="circle", centre="none", no_whiten=True, **short)
    assert run_here(by_hand).code == 0
    assert same(adapter(tmp_path / "paper", "stage1"), adapter(tmp_path / "hand", "stage1"))


def test_states_centred_on_the_stock_mean_run_whole(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """With --centre stock the three readings share one mean, which is saved with each of them."""
    argv = flags(tiny, rows, tmp_path / "run", contrastive_steps=4, sft_epochs=1, centre="stock")
    done = run_here(argv)
    assert (done.code, done.err) == (0, "")
    found = load_file(tmp_path / "run" / "adapter" / "discernment.safetensors")
    means = [found[f"{name}.mean"] for name in ("base", "safety_sft", "dcr")]
    assert all(torch.equal(mean, means[0]) for mean in means)


def test_a_run_without_stage_1_is_the_dial_alone(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """Nothing is trained: what the adapter adds to the model is one rank of one map, the dial's. Plan, report and model
    card say so."""
    run = tmp_path / "run"
    alone = {"stage1": "no", "stage2": "no", "dial": "balanced", "compare_with": []}
    done = run_here(flags(tiny, rows, run, **alone))
    assert (done.code, done.err) == (0, "")
    assert f"none (L = {LAYER})" in " ".join(done.out.split())
    weights = adapter(run)
    assert [(layer_of(name), *name.split(".")[-3:-1]) for name in sorted(weights)] == [
        (LAYER, "down_proj", "lora_A"), (LAYER, "down_proj", "lora_B"),
    ]  # fmt: skip
    assert torch.linalg.matrix_rank(next(weight for name, weight in weights.items() if "lora_B" in name)) == 1
    assert not any(weight.any() for name, weight in adapter(run, "stage1").items() if "lora_B" in name)
    assert f": a dial at layer {LAYER}, fitted to prompts." in (run / "adapter" / "README.md").read_text()
    page = (run / "report.md").read_text()
    assert "**Stage 1**: none." in page
    assert "took the AUROC" not in page
    assert "separation.png" not in page
    assert not (run / "separation.png").exists()
    assert ONLY_TURNED in " ".join(page.split())
    assert ONLY_TURNED in " ".join(done.out.split())
    assert open_run(run, "cpu").note == ONLY_TURNED
    assert f"## States of layer {LAYER}\n" in page
    assert (run / "adapter" / "discernment.safetensors").exists()
    (run / "report.json").unlink()  # as if it had been stopped before its end
    assert run_here([*flags(tiny, rows, run, **alone), "--resume"]).code == 0
    assert same(weights, adapter(run))
    turn(run, DialSetting.load(run / "dial").strength + 0.01, put=True, device="cpu")
    turned = adapter(run)
    assert {name: weight.shape for name, weight in turned.items()} == {n: w.shape for n, w in weights.items()}
    assert not same(weights, turned)


def test_development_pairs_share_no_prompt_with_training(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """What a run trains on, chooses by and measures on are different prompts."""
    data = inputs.load_data(small_settings(tiny, rows, tmp_path / "run"))

    def prompts(pairs: list[Pair]) -> set[str]:
        return {text for p in pairs for text in (p.toxic, p.seemingly_toxic)}

    training = prompts(data.training) | {row.prompt for row in [*data.refusals, *data.baseline_mixture]}
    watched, held_out = {p.prompt for p in data.watched}, {p.prompt for p in data.held_out}
    assert not training & watched
    assert not (training | watched) & held_out
    assert {p.label for p in data.watched} == {"toxic", "seemingly_toxic", "plain"}


def test_report_and_card_name_no_folder_of_the_machine(finished: Finished, tiny: Path, rows: Path) -> None:
    """Both say which files and which model, not where they lie."""
    for page in ("report.md", "adapter/README.md"):
        text = (finished.path / page).read_text(encoding="utf-8")
        assert not [folder for folder in (tiny.parent, rows, finished.path.parent) if str(folder) in text], page
    report = (finished.path / "report.md").read_text(encoding="utf-8")
    assert "| pairs | pairs.jsonl |" in report
    assert f"--model {tiny.name}" in report


@pytest.mark.parametrize(
    ("argv", "recipe", "command"),
    [
        (["recipes/llama3_8b.py", "--seed", "1"], "llama3_8b", ["python", "recipes/llama3_8b.py", "--seed", "1"]),
        (["/bin/dcr-lite", "train", "llama3_8b"], "llama3_8b", ["dcr-lite", "train", "llama3_8b"]),
        (["cli.py", "train", "/a/mine.py", "--seed", "1"], "mine", ["dcr-lite", "train", "/a/mine.py", "--seed", "1"]),
    ],
)
def test_the_report_names_the_recipe_however_it_was_started(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], recipe: str, command: list[str]
) -> None:
    """As a script, by its name or by its path: the same recipe, and the command as it was typed. The title of another
    model than the recipe's is that model."""
    monkeypatch.setattr("sys.argv", argv)
    assert report.started() == (recipe, command)
    made = {"recipe": recipe, "model": "owner/Other-1B"}
    assert report.page_title(made) == recipe
    for flag in (["--model", "owner/Other-1B"], ["--from-base-model", "--base_model=owner/Other-1B"]):
        monkeypatch.setattr("sys.argv", argv + flag)
        assert report.page_title(made) == "Other-1B"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("recipes/llama3_8b.py", "recipes/llama3_8b.py"),
        ("/home/me/pairs.jsonl", "pairs.jsonl"),
        ("--pairs=/home/me/pairs.jsonl", "--pairs=pairs.jsonl"),
        ("../me/model", "model"),
        ("/home/me/hub/models--Owner--Name-1B/snapshots/0123456789abcdef0123", "Owner/Name-1B"),
        (["/home/me/a.jsonl", "b.jsonl"], "a.jsonl, b.jsonl"),
        (0.5, "0.5"),
        (None, "None"),
    ],
)
def test_paths_are_shown_without_the_folders_of_the_machine(value: Any, shown: str) -> None:
    """Of a path that leads out of the folder in which a run was started only the name is shown."""
    assert report.without_folders(value) == shown
