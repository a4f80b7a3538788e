"""The linter: what makes the arms of a study unfair to compare, found before the run and in every report."""
