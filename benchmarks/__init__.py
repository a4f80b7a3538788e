"""What is measured, and how; what came of it lies in `results/`. See docs/benchmarks.md.

    python -m benchmarks [--model FOLDER --data FILE --baseline SCRIPT]

Nothing in the product imports this package; it drives the product from outside, as a user does.
"""
