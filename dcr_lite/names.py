"""Names that stand in files, flags and tables: kinds of prompt, models of a run, benchmarks."""

from typing import Literal

LABELS = ("toxic", "seemingly_toxic", "plain")
LABEL_TITLES = {"toxic": "toxic", "seemingly_toxic": "seemingly toxic", "plain": "plain"}

ModelName = Literal["dcr", "safety_sft", "base"]  # the models of a run
DCR, BASELINE = "dcr", "safety_sft"  # the two adapters of a run
STOCK = "base"  # the model without an adapter
MODEL_TITLES = {STOCK: "stock model", BASELINE: "safety SFT alone", DCR: "DCR"}
# Public prompt sets of dcr-lite evaluate --benchmarks; data/benchmarks.py has their addresses.
BENCHMARK_NAMES = (
    "xstest",
    "or_bench_hard",
    "oktest",
    "phtest",
    "coconot_contrast",
    "jailbreakbench_benign",
    "or_bench_toxic",
    "advbench",
    "harmbench",
    "jailbreakbench",
    "strongreject",
    "simple_safety_tests",
    "malicious_instruct",
)
