"""What every trial needs, imported once by the process that trials are forked from. No tensor is computed here."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["COLUMNS"] = "100"

import gradio  # noqa: F401
import peft  # noqa: F401
import torch
import transformers.models.llama.modeling_llama
import transformers.models.llama.tokenization_llama  # noqa: F401

import dcr_lite.cli
import dcr_lite.compare.command
import dcr_lite.demo.blocks
import dcr_lite.demo.page
import dcr_lite.diagnose.command
import dcr_lite.evaluate.command
import dcr_lite.evaluate.table
import dcr_lite.export.command
import dcr_lite.run.steps  # noqa: F401
from dcr_lite.run.terminal import console

console.width = 100  # it has read another's COLUMNS where this is not the first import
torch.set_num_threads(1)
gc.freeze()
