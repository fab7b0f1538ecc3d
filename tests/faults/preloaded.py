"""What every trial needs, imported once by the process that trials are forked from. No tensor is computed here."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["COLUMNS"] = "100"

import drawing  # noqa: F401
import gguf  # noqa: F401
import gradio  # noqa: F401
import jinja2  # noqa: F401
import peft.tuners.lora.bnb
import peft.utils.transformers_weight_conversion  # noqa: F401
import small_comparison  # noqa: F401
import tiny_models  # noqa: F401
import torch.utils.serialization.config
import transformers.models.llama.modeling_llama
import transformers.models.llama.tokenization_llama  # noqa: F401
import tyro

import dcr_lite.cli
import dcr_lite.compare.command
import dcr_lite.demo.blocks
import dcr_lite.demo.page
import dcr_lite.diagnose.command
import dcr_lite.evaluate.command
import dcr_lite.evaluate.table
import dcr_lite.export.command
import dcr_lite.export.targets
import dcr_lite.mend.command
import dcr_lite.mend.steps
import dcr_lite.probe.command
import dcr_lite.run.steps  # noqa: F401
from dcr_lite.run.terminal import console

console.width = 100  # it has read another's COLUMNS where this is not the first import
torch.set_num_threads(1)
tyro.cli(int, args=["1"])  # imports what it parses with
gc.freeze()
