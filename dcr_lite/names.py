"""Names that stand in files, flags and tables: kinds of prompt, models of a run."""

LABELS = ("toxic", "seemingly_toxic", "plain")
NAMES = {"toxic": "toxic", "seemingly_toxic": "seemingly toxic", "plain": "plain"}

DCR, BASELINE = "dcr", "safety_sft"  # the two adapters of a run
STOCK = "base"  # the model without an adapter
METHODS = {STOCK: "stock model", BASELINE: "safety SFT alone", DCR: "DCR"}
