"""The data sets of a pack as tokens, and what became of their rows."""

from dataclasses import dataclass

from lorastudy.data.answers import trivial_scores
from lorastudy.data.load import train_and_eval
from lorastudy.data.token_sets import Reach, token_sets
from lorastudy.data.tokenise import TokenSet
from lorastudy.engine.chat_template import prompt_style
from lorastudy.engine.loading import BaseModel, num_embeddings, num_positions
from lorastudy.suite.settings import Settings
from lorastudy.train.outcomes import PackRun


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


def load_data(run: PackRun, settings: Settings, *, base: BaseModel) -> PackData:
    """Read, render and tokenise the pack's data sets; record what became of their rows and what guessing would score."""
    study = train_and_eval(settings, style=prompt_style(base.tokenizer, settings.prompt_format))
    experiments = run.pack.experiments
    reach = Reach.of(
        settings,
        max_steps=[experiment.settings.max_steps for experiment in experiments],
        data_seeds=[experiments[0].data_seed],
    )
    sets = token_sets(study, settings, tokenizer=base.tokenizer, reach=reach)
    data = PackData(
        train=sets["train"], held_out=sets["eval"], test=sets.get("test"), forgetting=sets.get("forgetting")
    )
    for tokens in sets.values():
        run.emit(tokens.summary)
    config = base.model.config
    for score in trivial_scores(
        sets, settings, vocab_size=num_embeddings(config), num_positions=num_positions(config)
    ):
        run.emit(score)
    return data
