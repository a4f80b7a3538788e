"""The lab: a small real base model and generated data sets inside the package.

Most machines have no GPU and some have no network; with the lab a study still shows in minutes what rank
does. `base_model: lab` and `dataset_path: lab:facts` name its parts in a suite file. How the model was made
is in `lorastudy.lab.recipe`, which is the only module here that needs torch.
"""

from lorastudy.lab.catalogue import DATASETS, base_folder, demo_suite, fingerprint, rows

__all__ = ["DATASETS", "base_folder", "demo_suite", "fingerprint", "rows"]
