"""Names that stand in files, flags and tables: kinds of prompt, models of a run, compared methods."""

LABELS = ("toxic", "seemingly_toxic", "plain")
NAMES = {"toxic": "toxic", "seemingly_toxic": "seemingly toxic", "plain": "plain"}

DCR, BASELINE = "dcr", "safety_sft"  # the two adapters of a run
STOCK = "base"  # the model without an adapter
METHODS = {STOCK: "stock model", BASELINE: "safety SFT alone", DCR: "DCR"}
# The rows of dcr-lite compare.
COMPARED = {
    STOCK: "stock model",
    BASELINE: "safety SFT alone",
    "augmented": "data augmentation",
    "surgical": "Surgical",
    "scans": "SCANS",
    DCR: "DCR",
}
