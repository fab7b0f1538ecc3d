"""dcr-lite: contrastive refinement before safety training, so that a chat model refuses what is toxic and answers what
only sounds so."""

from importlib.metadata import version

__version__ = version("dcr-lite")
