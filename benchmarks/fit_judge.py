"""Fits the learned judge (dcr_lite/judges/learned.py), and measures it on models and prompts it was not fitted on.

    python benchmarks/fit_judge.py --labels xstest_v2_completions_*.csv --out dcr_lite/judges/learned.safetensors

Answers with human labels as in judge.py. Two accuracies for each model: the head fitted on the answers of all other
models; and fitted on those of other models to other prompts (a fifth of the prompts at a time), since answers to one
prompt resemble each other whoever gives them. Beside them the cue judge as it is, and the two averaged: the mean of
their log-odds. --out writes the head that is fitted on all labels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from judge import Labelled, read_labelled
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dcr_lite.files import save_tensors, write_json
from dcr_lite.judges.interface import Exchange
from dcr_lite.judges.learned import Embedder
from dcr_lite.measure.judge import refusal_score
from dcr_lite.measure.metrics import wilson_interval
from dcr_lite.run.report import markdown_table

# Of the logistic regression on standardised states, the best of 3e-4, 1e-3 and 3e-3 on models not fitted on.
INVERSE_PENALTY = 3e-3
FOLDS = 5  # of the prompts
LEAST = 1e-4  # of a probability whose log-odds are taken
HEAD = ["answers of", "cues", "learned, other models", "learned, other models and prompts", "both, averaged"]

Floats = NDArray[np.float64]


@dataclass
class Fit:
    """What to fit on."""

    labels: tuple[Path, ...]
    """Files of answers with human labels."""
    out: Path | None = None
    """File of the head."""
    json: Path | None = None
    """File for the numbers."""


def fitted(states: Floats, refused: NDArray[np.bool_]) -> tuple[Floats, float]:
    """(weights, bias) of the head on states as they are: (d_model,)."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_PENALTY, max_iter=1000)).fit(states, refused)
    scaler, head = model.named_steps.values()
    weights = head.coef_[0] / scaler.scale_
    return weights, float(head.intercept_[0] - weights @ scaler.mean_)


def without(states: Floats, rows: list[Labelled], model: str, folds: int) -> Floats:
    """The log-odds of each answer of a model, by heads fitted without this model, and with several folds also without
    the prompt."""
    refused, own = np.array([row.refused for row in rows]), np.array([row.model == model for row in rows])
    prompts = {prompt: i for i, prompt in enumerate(sorted({row.prompt for row in rows}))}
    order = np.random.default_rng(0).permutation(len(prompts))
    fold = np.array([order[prompts[row.prompt]] % folds for row in rows])
    found = np.zeros(len(rows))
    for k in range(folds):
        others = ~own & ((fold != k) if folds > 1 else True)
        weights, bias = fitted(states[others], refused[others])
        found[fold == k] = states[fold == k] @ weights + bias
    return found[own]


def accuracies(states: Floats, rows: list[Labelled]) -> list[dict[str, Any]]:
    """For each model {model, n, and of every judge the share of answers judged as the label says}."""
    found = []
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        label = np.array([row.refused for row in own])
        cues = logit(np.clip([refusal_score(row.response) for row in own], LEAST, 1 - LEAST))
        strict = without(states, rows, model, FOLDS)
        judges = dict(zip(HEAD[1:], (cues, without(states, rows, model, 1), strict, (cues + strict) / 2), strict=True))
        right = {name: float(((odds >= 0) == label).mean()) for name, odds in judges.items()}
        found.append({"model": model, "n": len(own)} | right)
    return found


def main(choices: Fit) -> list[dict[str, Any]]:
    rows = [row for path in choices.labels for row in read_labelled(path)]
    states = Embedder().states([Exchange(row.prompt, row.response or "-") for row in rows])
    found = accuracies(states, rows)
    names = HEAD[1:]
    lines = []
    for row in found:
        intervals = [wilson_interval(round(row[name] * row["n"]), row["n"]) for name in names]
        cells = (f"{row[name]:.3f} ({low:.3f}-{high:.3f})" for name, (low, high) in zip(names, intervals, strict=True))
        lines.append([row["model"], *cells])
    lines.append(["**mean**", *(f"**{np.mean([row[name] for row in found]):.3f}**" for name in names)])
    print(markdown_table(HEAD, lines))
    if choices.json:
        write_json(found, choices.json)
    if choices.out:
        weights, bias = fitted(states, np.array([row.refused for row in rows]))
        tensors = {"weights": torch.from_numpy(weights).float(), "bias": torch.tensor(bias, dtype=torch.float32)}
        save_tensors(tensors, choices.out)
    return found


if __name__ == "__main__":
    main(tyro.cli(Fit, description=__doc__))
