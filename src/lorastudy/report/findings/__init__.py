"""Findings: the key questions of each experiment type, answered in sentences from the analysis' numbers."""
