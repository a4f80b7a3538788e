"""What follows from a suite, the store and the machine before anything runs; `study_plan` computes it once."""
