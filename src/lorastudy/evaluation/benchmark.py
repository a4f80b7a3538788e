"""What `lorastudy evaluate --benchmark-only` asks: one prompt for each of several kinds of task."""

from lorastudy.data.conversations import Instruction
from lorastudy.data.prompts import alpaca_prompt

PROMPTS = (
    "Explain in two sentences why the sky is blue.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Translate into French: The library opens at nine o'clock.",
    "A train travels 120 km in 1.5 hours. What is its average speed?",
    "Summarise in one sentence: The committee met on Tuesday, argued for four hours, and agreed on nothing.",
    "List three risks of storing passwords in plain text.",
)


def prompt_text(instruction: str) -> str:
    """The instruction in the Alpaca layout, as in training on Alpaca rows."""
    return alpaca_prompt(Instruction(prompt=instruction, answer=""))
