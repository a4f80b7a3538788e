"""The data sets of a pack as tokens, and what became of their rows."""

from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from lorastudy.data.load import near_copies, train_and_eval
from lorastudy.data.token_sets import Reach, token_sets
from lorastudy.data.tokenise import TokenSet
from lorastudy.engine.chat_template import prompt_style
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
    study = train_and_eval(settings, style=prompt_style(tokenizer, settings.prompt_format))
    experiments = run.pack.experiments
    reach = Reach.of(
        settings,
        max_steps=[experiment.settings.max_steps for experiment in experiments],
        data_seeds=[experiments[0].data_seed],
    )
    sets = token_sets(study, settings, tokenizer=tokenizer, reach=reach)
    data = PackData(
        train=sets["train"], held_out=sets["eval"], test=sets.get("test"), forgetting=sets.get("forgetting")
    )
    run.emit(replace(data.train.summary, num_duplicate_rows=study.num_duplicates))
    near = near_copies(study)
    for split, scored in data.scored():
        compared = near.get(split)
        run.emit(
            replace(
                scored.summary,
                num_leaked_rows=study.num_leaked.get(split),
                num_known_prompts=study.num_known_prompts.get(split),
                num_near_copies=None if compared is None else compared.num_near,
                num_compared_rows=None if compared is None else compared.num_compared,
                split_by=study.split_by.get(split),
            )
        )
    return data
