"""`from lorastudy.experiments.base_experiment import BaseExperiment`, as the specification has it."""

from lorastudy.suite.experiment_types import BaseExperiment, ExperimentConfig

__all__ = ["BaseExperiment", "ExperimentConfig"]
