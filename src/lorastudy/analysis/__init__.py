"""From stored results to statements: arms, spreads over seeds, paired differences, verdicts. Pure functions."""
