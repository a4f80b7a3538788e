"""What guessing scores without a model (`data.trivial`), as a study's results recorded it, and how arms stand to it.

A trivial predictor is no arm: it is in no verdict, no tie and no frontier. But an arm that it beats has learnt nothing from
the prompts.
"""

from collections.abc import Mapping

from lorastudy.records import TrivialPredictor

PREDICTOR_NAMES: Mapping[TrivialPredictor, str] = {
    "constant": "constant answer",
    "frequencies": "answer frequencies",
    "unigram": "token frequencies",
}
