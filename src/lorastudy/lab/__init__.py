"""The lab: a small real base model and generated data sets inside the package.

Most machines have no GPU, and some have no network. The lab lets a study show the effect of rank in minutes even there.
In a suite file its parts are `base_model: lab` and, for example, `dataset_path: lab:facts`. `lorastudy.lab.recipe`
makes the model and is the only module here that needs torch.
"""

from lorastudy.lab.catalogue import DATASETS, base_folder, demo_suite, fingerprint, rank_study, rows

__all__ = ["DATASETS", "base_folder", "demo_suite", "fingerprint", "rank_study", "rows"]
