"""Which configuration to use: one decision for each study, and the answer that many studies give to one question."""
