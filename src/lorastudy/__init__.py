"""lorastudy: which LoRA configuration to use for a given model, data set and memory, with evidence."""

__version__ = "0.2.0"
