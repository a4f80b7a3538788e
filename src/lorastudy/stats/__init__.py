"""Statistics of paired runs: arms, spreads over seeds, paired differences, verdicts. Pure functions."""
