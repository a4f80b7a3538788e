"""The designs of a study: what an arm is called, what its adapter is, which questions are asked of it."""
