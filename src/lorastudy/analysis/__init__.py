"""A study judged: every verdict, finding and cost of what was measured, or of tables that were imported."""
