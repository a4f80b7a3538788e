"""Results of other tools, read and labelled: PEFT's `method_comparison`, and any table with a mapping of its columns."""
