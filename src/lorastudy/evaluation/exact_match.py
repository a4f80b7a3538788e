"""Exact match of greedily generated answers."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorastudy.data.answers import asked_rows, is_match, what_counts
from lorastudy.data.tokenise import TokenRow, answer_text
from lorastudy.engine.arms import Scorer
from lorastudy.engine.loading import BaseModel, num_positions
from lorastudy.protocol.records import EXACT_MATCH_VERSION, Generation, Score

#: Answers per experiment that are stored as evidence.
NUM_KEPT = 5


@dataclass(frozen=True, kw_only=True)
class ExactMatch:
    """Share of rows whose greedy answer is the reference.

    The reference is the text of the row's labelled answer tokens, so a model that generates exactly these tokens
    matches. Before the comparison, outer white space is removed and inner white space becomes one space; case counts.
    With a `pattern`, the comparison is between the first group of the last match in both texts; an answer without a
    match is wrong. In a conversation the model answers the last turn, given all turns before it. Rows without a prompt
    (plain text) are left out, and so are rows whose answer might not fit the model's positions. If no row remains there
    is no score.
    """

    max_new_tokens: int
    max_rows: int
    pattern: str | None = None

    def evaluate(
        self, scorer: Scorer, rows: Sequence[TokenRow], *, base: BaseModel, split: str
    ) -> Iterator[Score | Generation]:
        """Yield two scores per arm over the first `max_rows` rows with a prompt, and `NUM_KEPT` answers."""
        asked = asked_rows(
            rows,
            max_new_tokens=self.max_new_tokens,
            max_rows=self.max_rows,
            num_positions=num_positions(base.model.config),
        )
        if not asked:
            return
        answers = scorer.generate([row.prompt_ids for row in asked], max_new_tokens=self.max_new_tokens)
        for experiment_id, arm_answers in zip(scorer.experiment_ids, answers, strict=True):
            texts = [answer_text(ids, base.tokenizer) for ids in arm_answers]
            hits = tuple(
                float(is_match(text, row.reference, pattern=self.pattern))
                for text, row in zip(texts, asked, strict=True)
            )
            for metric, items in (("exact_match", hits), ("same_answer", self._same_answers(texts))):
                yield Score(
                    experiment_id=experiment_id,
                    split=split,
                    metric=metric,
                    version=EXACT_MATCH_VERSION,
                    unit="",
                    value=sum(items) / len(items),
                    items=items,
                )
            for text, row in zip(texts[:NUM_KEPT], asked, strict=False):
                yield Generation(
                    experiment_id=experiment_id, prompt=row.prompt_text, reference=row.reference, answer=text
                )

    def _same_answers(self, texts: Sequence[str]) -> tuple[float, ...]:
        """1 for each row with the arm's most common answer, else 0. All are 1 if the arm always gives the same answer.

        Two answers without a match of the pattern are the same if their whole texts are equal.
        """
        found = [self._found_or_whole(text) for text in texts]
        ((commonest, _),) = Counter(found).most_common(1)
        return tuple(float(one == commonest) for one in found)

    def _found_or_whole(self, text: str) -> tuple[bool, str | None]:
        """Whether the pattern matches, and its match or else the whole text."""
        found = what_counts(text, pattern=self.pattern)
        return (True, found) if found is not None else (False, what_counts(text))
