"""The data sets of a pack as tokens, and what became of their rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from lorastudy.data.examples import Example
from lorastudy.data.load import train_and_eval
from lorastudy.data.tokenise import TokenSet, chat_template_of, tokenise
from lorastudy.spec.settings import Settings
from lorastudy.training.outcomes import PackRun


@dataclass(frozen=True, kw_only=True)
class PackData:
    """The token sets of a pack."""

    train: TokenSet
    held_out: TokenSet
    test: TokenSet | None
    forgetting: TokenSet | None

    def scored(self) -> list[tuple[str, TokenSet]]:
        """The sets that are scored, by the name of their split."""
        sets = (("eval", self.held_out), ("test", self.test), ("forgetting", self.forgetting))
        return [(split, tokens) for split, tokens in sets if tokens is not None]


def load_data(run: PackRun, settings: Settings, *, tokenizer: PreTrainedTokenizerBase) -> PackData:
    """Read, render and tokenise the pack's data sets; record what became of their rows."""
    study = train_and_eval(settings, chat_template=chat_template_of(tokenizer))

    def tokens(examples: Sequence[Example], split: str) -> TokenSet:
        return tokenise(examples, tokenizer=tokenizer, max_seq_length=settings.max_seq_length, split=split)

    data = PackData(
        train=tokens(study.train, "train"),
        held_out=tokens(study.held_out, "eval"),
        test=None if study.test is None else tokens(study.test, "test"),
        forgetting=None if study.forgetting is None else tokens(study.forgetting, "forgetting"),
    )
    run.emit(replace(data.train.summary, num_duplicate_rows=study.num_duplicates))
    for split, scored in data.scored():
        run.emit(replace(scored.summary, num_leaked_rows=study.num_leaked.get(split)))
    return data
