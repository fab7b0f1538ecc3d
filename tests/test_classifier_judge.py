"""Any text classifier as a judge: its labels and what it reads are found on shipped answers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
)

from dcr_lite.data.rows import read_conversations
from dcr_lite.errors import UserError
from dcr_lite.files import SHIPPED
from dcr_lite.judges import evidence
from dcr_lite.judges.classifier import ANSWER, MARKERS, OWN_TEMPLATE, PAIR, ClassifierJudge
from dcr_lite.judges.evidence import known_answers, read_by_evidence, reading_of
from dcr_lite.judges.interface import Exchange
from dcr_lite.judges.opening import open_judge

MINOS, GEMMA = MARKERS
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
STEPS = 40


def known() -> list[tuple[Exchange, int]]:
    """Shipped refusals and answers, of which a third is none of those that a judge is tried on."""
    rows = []
    for name, label in (("refusals.jsonl", 1), ("instructions.jsonl", 0), ("augmentation.jsonl", 0)):
        rows += [(Exchange(r.prompt, r.response), label) for r in read_conversations(SHIPPED / name)[:100]]
    return rows


def word_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """Words and marks, in lower case."""
    words = pre_tokenizers.BertPreTokenizer()
    seen = {"user", "assistant"}
    for row, _ in known():
        text = f"{row.prompt} {row.response}".lower()
        seen |= {word for word, _ in words.pre_tokenize_str(text)}
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(seen)])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    model.normalizer, model.pre_tokenizer = normalizers.Lowercase(), words
    model.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=512,
    )  # fmt: skip
    tokenizer.chat_template = template
    return tokenizer


def save_classifier(
    folder: Path, labels: dict[int, str], texts: Callable[[Exchange], tuple[str, ...]], config: type = BertConfig,
    trained: bool = True, refusing: int = 1, template: str | None = None,
) -> Path:  # fmt: skip
    """A tiny classifier in a folder, of which the label ``refusing`` means refusal, trained on conversations that are
    written as ``texts`` says."""
    tokenizer = word_tokenizer(template)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = config(vocab_size=len(tokenizer), id2label=labels, label2id={v: k for k, v in labels.items()}, **SHAPE)
        network = AutoModelForSequenceClassification.from_config(made)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        rows = known()
        other = next(number for number in (0, 1) if number != refusing or len(labels) == 1)
        for _ in range(STEPS if trained else 0):
            drawn = [rows[i] for i in torch.randint(len(rows), (16,)).tolist()]
            columns = [list(column) for column in zip(*(texts(row) for row, _ in drawn), strict=True)]
            batch = tokenizer(*columns, padding=True, truncation=True, max_length=96, return_tensors="pt")
            logits = network(**batch).logits
            if len(labels) == 1:
                wanted = torch.tensor([float(refuses) for _, refuses in drawn])
                loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], wanted)
            else:
                number = torch.tensor([refusing if refuses else other for _, refuses in drawn])
                loss = torch.nn.functional.cross_entropy(logits, number)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def accuracy(judge: Any) -> float:
    rows = known()
    scores = judge.scores([row for row, _ in rows])
    assert all(0 <= score <= 1 for score in scores)
    return float(np.mean([(score >= 0.5) == bool(label) for score, (_, label) in zip(scores, rows, strict=True)]))


def written(form: str) -> Callable[[Exchange], tuple[str, ...]]:
    return lambda row: (MARKERS[form].format(prompt=row.prompt, response=row.response),)


@pytest.fixture(scope="module")
def minos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As NousResearch/Minos-v1: ModernBERT, role markers that are plain text, the labels Non-refusal and Refusal."""
    folder = tmp_path_factory.mktemp("minos")
    return save_classifier(folder, {0: "Non-refusal", 1: "Refusal"}, written(MINOS), ModernBertConfig)


def test_a_classifier_like_minos(minos: Path) -> None:
    """Its label Refusal is found, and its verdicts are right on answers that it was not tried on."""
    judge = open_judge(str(minos))
    assert isinstance(judge, ClassifierJudge)
    assert [judge.labels[number] for number in judge.reading.labels] == ["Refusal"]
    assert judge.reading.right >= evidence.LEAST_RIGHT
    assert accuracy(judge) > 0.95
    assert judge.scores([]) == []


def test_labels_that_say_nothing_are_read_all_the_same(tmp_path: Path) -> None:
    """Named LABEL_0 and LABEL_1, with refusals first; the answer alone is what it was trained on."""
    labels = {0: "LABEL_0", 1: "LABEL_1"}
    folder = save_classifier(tmp_path / "a", labels, lambda row: (row.response,), refusing=0)
    judge = ClassifierJudge(str(folder), "cpu")
    assert judge.reading.labels == (0,)
    assert accuracy(judge) > 0.95


def test_a_single_logit_is_a_label_too(tmp_path: Path) -> None:
    """A classifier with one output: the log-odds of refusal."""
    folder = save_classifier(tmp_path / "a", {0: "refusal"}, lambda row: (row.response,))
    judge = ClassifierJudge(str(folder), "cpu")
    assert (judge.labels, judge.reading.labels) == (["not refusal", "refusal"], (1,))
    assert accuracy(judge) > 0.95


def test_scores_are_those_of_transformers_alone(minos: Path) -> None:
    """In batches of rows of all lengths, cut at the window, as for each row by itself."""
    judge = ClassifierJudge(str(minos), "cpu")
    rows = [row for row, _ in known()[::7]]
    rows += [Exchange("What is a cat?", "word " * 3_000), Exchange("", ""), Exchange("{response} {prompt}", "{prompt}")]
    tokenizer = AutoTokenizer.from_pretrained(minos)
    network = AutoModelForSequenceClassification.from_pretrained(minos, dtype=torch.float32).eval()
    if judge.reading.form == MINOS:
        texts = [f"<|user|>\n{r.prompt[:1000]}\n<|assistant|>\n{r.response[:2000]}" for r in rows]
    else:
        assert judge.reading.form in (GEMMA, PAIR, ANSWER)
        texts = [judge._text(judge.reading.form, r) for r in rows]
    for text, score in zip(texts, judge.scores(rows), strict=True):
        parts = (text,) if isinstance(text, str) else text
        batch = tokenizer(*parts, truncation=True, max_length=512, return_tensors="pt")
        with torch.no_grad():
            assert network(**batch).logits.softmax(-1)[0, 1].item() == pytest.approx(score, abs=1e-4)


def test_a_tokenizer_that_lacks_something_is_no_traceback(minos: Path, tmp_path: Path) -> None:
    """Without a token to fill rows up with, the error names the file to put one into; a chat template that fails is not
    how the classifier reads, and another way is found."""
    folder = shutil.copytree(minos, tmp_path / "judge")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no roles') }}")
    judge = ClassifierJudge(str(folder), "cpu")
    assert judge.tokenizer.chat_template
    assert judge.reading.form == ClassifierJudge(str(minos), "cpu").reading.form
    with pytest.raises(UserError, match=r"judge: its chat template fails \(no roles\)"):
        judge._text(OWN_TEMPLATE, Exchange("a", "b"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": None, "eos_token": None}))
    with pytest.raises(UserError, match=r"no token to fill rows up with. Name one as pad_token in its tokenizer_conf"):
        ClassifierJudge(str(folder), "cpu")


def test_a_random_classifier_is_refused_with_its_numbers(tmp_path: Path) -> None:
    """Whatever its labels are called: no way of reading it tells refusals from answers."""
    labels = {0: "Non-refusal", 1: "Refusal"}
    folder = save_classifier(tmp_path / "a", labels, lambda row: (row.response,), trained=False)
    with pytest.raises(UserError, match=r"none of its labels \(Non-refusal, Refusal\) tells 12 shipped .* 0\.\d\d"):
        ClassifierJudge(str(folder), "cpu")


def test_a_classifier_of_toxic_prompts_is_refused(tmp_path: Path) -> None:
    """It sees what a conversation is about, not what the answer does: on answers to prompts that only sound toxic it is
    wrong."""
    refusals, answers = known_answers()
    hurt = {*refusals, *answers[:6]}

    def probabilities(form: str, rows: list[Exchange]) -> Any:
        return np.array([[0.1, 0.9] if row in hurt else [0.9, 0.1] for row in rows])

    with pytest.raises(UserError, match=r"judged right pair 0\.75"):
        read_by_evidence("toxic", ["fine", "toxic"], [PAIR], probabilities)


# --- the choice itself ------------------------------------------------------------------------------------------------


def test_several_labels_of_refusal_count_together() -> None:
    """Full and partial refusal are two labels of some classifiers: their probabilities are added, others are not."""
    refusals = np.array([[0.1, 0.45, 0.4, 0.05], [0.1, 0.4, 0.45, 0.05]])
    answers = np.array([[0.9, 0.04, 0.02, 0.04], [0.8, 0.1, 0.05, 0.05]])
    reading = reading_of("a", refusals, answers)
    assert reading.labels == (1, 2)
    assert reading.right == 1.0
    assert reading.log_loss == pytest.approx(-np.log([0.85, 0.85, 0.94, 0.85]).mean())


def test_the_form_that_judges_best_is_taken() -> None:
    """The most shipped answers right; of equals the lower log loss."""
    refusals, _ = known_answers()
    sure = {"wrong": 0.3, "unsure": 0.6, "sure": 0.95}

    def probabilities(form: str, rows: list[Exchange]) -> Any:
        refused = [sure[form] if row in refusals else 0.1 for row in rows]
        return np.array([[1 - p, p] for p in refused])

    assert read_by_evidence("a", ["x", "y"], list(sure), probabilities).form == "sure"
    assert read_by_evidence("a", ["x", "y"], ["wrong", "unsure"], probabilities).form == "unsure"
    with pytest.raises(UserError, match=r"judged right wrong 0\.50"):
        read_by_evidence("a", ["x", "y"], ["wrong"], probabilities)


def test_a_classifier_s_own_chat_template_is_tried_first(tmp_path: Path) -> None:
    """Where its tokenizer brings one: of equals the first form is taken. A decoder is a classifier too."""
    template = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}"
    folder = save_classifier(
        tmp_path / "a", {0: "a", 1: "b"}, lambda row: (f"<user>{row.prompt}<assistant>{row.response}",), LlamaConfig,
        template=template,
    )  # fmt: skip
    judge = ClassifierJudge(str(folder), "cpu")
    assert judge._forms()[0] == OWN_TEMPLATE
    assert judge._text(OWN_TEMPLATE, Exchange("p", "r")) == ("<user>p<assistant>r",)
    assert accuracy(judge) > 0.95


# --- what is no classifier --------------------------------------------------------------------------------------------


def test_what_is_no_classifier_is_named(minos: Path, tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """A chat model, a folder without a model, a name that cannot be had, damaged weights: each in a sentence that
    names --judge."""
    with pytest.raises(UserError, match=r"--judge .*not a text classifier, but LlamaForCausalLM"):
        open_judge(str(tiny_folder("llama")))
    with pytest.raises(UserError, match=r"--judge .*not a model folder"):
        open_judge(str(tmp_path))
    with pytest.raises(UserError, match=r"--judge NousResearch/Minos-v1: .*Give --judge a folder that holds it"):
        open_judge("NousResearch/Minos-v1")
    with pytest.raises(UserError, match="no such folder, and not a Hub name"):
        open_judge("no such judge")
    damaged = shutil.copytree(minos, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be loaded as a text classifier"):
        open_judge(str(damaged))


def test_a_model_s_own_code_is_never_run(minos: Path, tmp_path: Path) -> None:
    """A folder that asks to import its code is refused, and the code is not run."""
    folder = shutil.copytree(minos, tmp_path / "own")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForSequenceClassification": "own.Own", "AutoConfig": "own.OwnConfig"}
    config["model_type"] = "own"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be loaded as a text classifier"):
        open_judge(str(folder))
    assert not ran.exists()
