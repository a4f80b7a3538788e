"""The settings of a suite file: every key on how an adapter is trained and measured.

They are pydantic models because a file's values are untrusted. Names are those of transformers and peft if these have
one. The types are the reference: their defaults, bounds and descriptions generate `docs/suite-file.md` and the JSON
schema.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lorastudy.errors import StudyError
from lorastudy.suite.methods import (
    METHOD_KEYS,
    REFUSED_INITIAL_WEIGHTS,
    TRAINING_KEYS,
    ArmMethod,
    InitialWeights,
    Method,
    Optimizer,
)
from lorastudy.suite.peft_types import PEFT_TYPES, canonical
from lorastudy.suite.schedules import (
    ADAPTIVE,
    SCHEDULE_KEYS,
    WARMUP_KEYS,
    Scheduler,
    acting_options,
    schedule_problem,
)

Quantization = Literal["4bit", "8bit", "fp16", "bf16", "fp32"]

EngineName = Literal["auto", "packed", "reference"]

PromptFormat = Literal["auto", "chat", "alpaca", "plain"]

TargetPreset = Literal["q", "v", "qv", "qkvo", "mlp", "all"]

TARGET_PRESETS: tuple[str, ...] = get_args(TargetPreset)

#: The keys for the length of training. A suite gives one of them.
LENGTH_KEYS = ("num_train_epochs", "max_steps")
#: The value of `learning_rate` that asks for a search.
AUTO: Literal["auto"] = "auto"

Rate = Annotated[float, Field(gt=0, lt=10)]

_INITIAL_WEIGHTS = re.compile(rf"{'|'.join(get_args(InitialWeights))}|pissa_niter_[1-9]\d*")

#: Keys whose lists have no order and no item twice.
_SETS = (
    "target_modules",
    "layers_to_transform",
    "exclude_modules",
    "modules_to_save",
    "trainable_token_indices",
)

_ALPHA_POLICY = re.compile(r"(?P<factor>\d+(?:\.\d+)?)?r")


class AskedSettings(BaseModel):
    """The settings of one arm as a file gives them. Any key may stand at the top of a suite or in an entry."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    # --- what is trained, on what ---------------------------------------------------------------------
    base_model: Annotated[str, Field(min_length=1)] = Field(
        "lab",
        description="Folder of a transformers causal LM, a model id on the Hugging Face hub, or `lab`, the small model inside the package.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Let the model folder run its own Python code. Recorded."
    )
    dataset_path: Annotated[str, Field(min_length=1)] = Field(
        "lab:facts",
        description="Training rows: JSON, JSONL, CSV or Parquet, or `lab:<name>`. Relative to the current folder.",
    )
    eval_dataset_path: str | None = Field(
        None,
        description="Held-out rows. Without it, `eval_fraction` of the training file is held out by a hash of the prompt. "
        "Where there are test rows too, these are the validation rows: they choose, and the test rows report.",
    )
    eval_fraction: float = Field(
        0.1, gt=0, lt=1, description="Held out when there is no `eval_dataset_path`."
    )
    test_dataset_path: str | None = Field(
        None,
        description="Test rows, on which results are reported; they take no part in any choice, such as that of "
        "the learning rate. Without this key and `test_fraction` there are none, and the held-out rows report.",
    )
    test_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Instead of `test_dataset_path`: the share of test rows, taken by a hash of the prompt from the "
        "training file, or from the file of held-out rows where there is one.",
    )
    forgetting_dataset_path: str | None = Field(
        None,
        description="Rows of the base model's own domain: their loss is measured before and after training.",
    )
    max_train_samples: int | None = Field(
        None, ge=1, description="Use only the first rows of the training file."
    )
    max_eval_samples: int | None = Field(
        None,
        ge=1,
        description="Use only the first held-out rows, test rows and forgetting rows; of each so many.",
    )
    max_seq_length: int = Field(
        512,
        ge=8,
        description="Tokens per row; longer rows are cut at the end, longer plain texts into several rows.",
    )

    prompt_format: PromptFormat = Field(
        "auto",
        description="What lays rows out: `chat`, the model's own chat template; `alpaca`, Alpaca's prompt; `plain`, prompt "
        "and answer joined as they are. `auto` takes the chat template where the model has one, also for Alpaca rows and "
        "prompt/completion pairs, and else what the rows' format is known for.",
    )

    train_on_inputs: bool = Field(
        default=False,
        description="Train on the prompts too, not only on the answers. The rows are the same, and held-out losses are those of answers.",
    )
    group_by_length: bool = Field(
        default=False,
        description="Put rows of similar length into a batch, as transformers does: the rows of 50 steps at a time, the longest first. "
        "It saves padding in the reference engine. The packed one lays rows end to end without any, which other tools call "
        "packing, so there it changes the order alone.",
    )

    # --- how long -------------------------------------------------------------------------------------
    num_train_epochs: float | None = Field(
        None, gt=0, description="Passes over the training rows; 1 when neither this nor `max_steps` is given."
    )
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps; instead of `num_train_epochs`.")
    per_device_train_batch_size: int = Field(4, ge=1, description="Rows per forward pass, for each arm.")
    gradient_accumulation_steps: int = Field(1, ge=1, description="Forward passes per optimizer step.")

    # --- the optimizer: AdamW -------------------------------------------------------------------------
    learning_rate: Rate | Literal["auto"] = Field(
        2e-4,
        description="Peak learning rate. A list makes one arm of each. `auto` looks for the best rate of each arm, "
        "beginning with the published rule for the model's family and size, or with the rate that the nearest arm "
        "found: on the held-out rows, with the first of `tuning_seeds`. The rate found lies where a parabola through "
        "those tried is lowest. It keeps test rows apart: where the file asks for none, a tenth of the training file, or "
        "half of `eval_dataset_path`.",
    )
    lr_scheduler_type: Scheduler = Field(
        "linear",
        description="How the rate falls after the warm-up, as in transformers (see [Schedules](#schedules)).",
    )
    lr_scheduler_kwargs: Mapping[str, int | float | str] = Field(
        {}, description="Options of the schedule, such as `{num_cycles: 3}` of `cosine_with_restarts`."
    )
    warmup_ratio: float = Field(
        0.0, ge=0, lt=1, description="Share of the steps during which the rate rises."
    )
    warmup_steps: int = Field(
        0, ge=0, description="Steps during which the rate rises; instead of `warmup_ratio`."
    )
    optim: Optimizer = Field(
        "adamw_torch",
        description="The optimizer, as in transformers. The packed engine has `adamw_torch`, the reference engine all of them. "
        "`adamw_8bit` and `paged_adamw_8bit` are those of bitsandbytes and need a GPU. `adafactor` has no relative step, as "
        "in transformers' Trainer, and `sgd` no momentum.",
    )
    weight_decay: float = Field(
        0.0, ge=0, lt=1, description="On all adapter weights; decoupled, but for `sgd`."
    )
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient clipping, per arm; 0 turns it off.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's first-moment decay.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's second-moment decay.")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    label_smoothing_factor: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="While training, the share of each label that is spread evenly over all tokens. Training losses include it; "
        "held-out losses do not, so arms with and without it compare.",
    )
    neftune_noise_alpha: float | None = Field(
        None,
        gt=0,
        description="NEFTune: while training, add uniform noise to the embeddings of the tokens, at most this over the square root "
        "of a micro-batch's padded length times the hidden size. In the reference engine.",
    )

    # --- the adapter ----------------------------------------------------------------------------------
    lora_rank: int = Field(16, ge=1, le=4096, description="peft's `r`.")
    lora_alpha: Annotated[float, Field(gt=0)] | Annotated[str, Field(examples=["r", "2r", "0.5r"])] = Field(
        32.0, description="A number, or a policy: `r`, `2r`, `0.5r` follow the rank."
    )
    use_rslora: bool = Field(default=False, description="Scale by alpha / sqrt(r) instead of alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before `lora_A`, drawn per arm.")
    target_modules: TargetPreset | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "qkvo",
        description="Module names, regular expressions of full names, or a preset by role that is resolved for the architecture: `q`, `v`, `qv`, `qkvo`, `mlp`, `all`; `mlp` and `all` adapt the weights of routed experts, too.",
    )
    layers_to_transform: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = (
        Field(None, description="Adapt only these layers (counted from 0).")
    )
    exclude_modules: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None,
        description="Do not adapt these modules of those that `target_modules` selects: names, or regular expressions of full names.",
    )

    # --- the method -----------------------------------------------------------------------------------
    method: Method | None = Field(
        None,
        description="Short name of a method, in place of its own keys: `rslora` is `use_rslora: true`, `dora` is `use_dora: true`, `loraplus` is "
        "`loraplus_lr_ratio: 16`, `pissa` and `olora` are `init_lora_weights`, `lora` is none of them. `lorafa` freezes `lora_A` "
        "and trains with PEFT's `create_lorafa_optimizer`, which has its own AdamW constants. `full` is full fine-tuning: it trains all "
        "weights of the base, has no key of an adapter, and is saved as a model folder.",
    )
    use_dora: bool = Field(
        default=False, description="DoRA: train the norm of each output's weights apart from their direction."
    )
    loraplus_lr_ratio: float | None = Field(
        None, ge=1, description="LoRA+: the learning rate of `lora_B` is this many times that of `lora_A`."
    )
    init_lora_weights: bool | InitialWeights | Annotated[str, Field(examples=["pissa_niter_16"])] = Field(
        default=True,
        description="Initial weights of the adapter, as PEFT makes them. `pissa` and `olora` take a part out of the frozen weights "
        "and train it; such an adapter is saved as plain LoRA of twice the rank. `loftq` needs `quantization: 4bit` and starts from "
        "what quantisation took away; as in PEFT, it does so at a scale of 1, so set `lora_alpha: r`.",
    )
    rank_pattern: Mapping[str, Annotated[int, Field(ge=1, le=4096)]] = Field(
        {},
        description="Other ranks for some layers: `{down_proj: 8}`. A key is a module's name or a regular expression of it; it must match "
        "an adapted layer, and no layer may match two keys. `lora_alpha` stays that of `lora_rank`.",
    )
    alpha_pattern: Mapping[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Other numbers of `lora_alpha` for some layers, by keys as in `rank_pattern`."
    )
    bias: Literal["none", "all", "lora_only"] = Field(
        "none",
        description="Train biases of the base too: `all` of them, or `lora_only`, those of the adapted layers. They train in the base's "
        "precision and are saved with the adapter. In the reference engine.",
    )
    modules_to_save: (
        Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] | None
    ) = Field(
        None,
        description="Train a copy of these modules whole, such as `[embed_tokens, lm_head]`, and save it with the adapter. It trains in the "
        "base's precision. A head that shares its weights with the embeddings no longer does so. In the reference engine.",
    )
    trainable_token_indices: (
        Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None
    ) = Field(
        None,
        description="Train the embeddings of these token ids, and of no others. A head that shares them follows. In the reference engine.",
    )
    peft: Mapping[str, Any] = Field(
        {},
        description="Another of PEFT's adapters by its own configuration, such as `{peft_type: LOHA, r: 8, alpha: 16}`: "
        f"{', '.join(PEFT_TYPES)}. It has none of LoRA's keys. In the reference engine.",
    )

    # --- precision and memory -------------------------------------------------------------------------
    quantization: Quantization = Field(
        "bf16",
        description="Of the base model: bitsandbytes 4-bit or 8-bit, or a plain precision. Adapters are fp32. Full fine-tuning "
        "computes in this precision, and its optimizer has the weights in fp32.",
    )
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field("nf4", description="With `4bit` only.")
    bnb_4bit_use_double_quant: bool = Field(default=True, description="With `4bit` only.")
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations in the backward pass."
    )
    engine: EngineName = Field(
        "auto",
        description="`packed` trains arms together, `reference` is PEFT in a plain loop, `auto` takes packed where it can.",
    )
    deterministic: bool = Field(
        default=True,
        description="On a GPU, give the same bits in a second run. `false` may be faster there, and a resumed suite or a second run then differs in the last bits. On a CPU it changes nothing.",
    )
    max_arms_per_pack: int | None = Field(
        None, ge=1, description="Upper bound; by default the planner decides."
    )

    checkpoint_steps: int | None = Field(
        None, ge=1, description="Save training after so many steps of a pack, besides `checkpoint_minutes`."
    )
    checkpoint_minutes: float | None = Field(
        5.0,
        gt=0,
        description="Save training after so many minutes of it; `null` for never. Where saving is slow it happens less often, so that it takes at most 3 % of the training.",
    )

    # --- what is measured -----------------------------------------------------------------------------
    data_seed: int | None = Field(
        None,
        ge=0,
        description="Fixes the order of the training rows. By default the seed draws it, so that seeds are replicates "
        "of the whole training. All arms of a seed see the same rows in the same order either way.",
    )
    eval_steps: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Score the validation rows (the held-out rows) during training too: each time after so many steps, or after "
        "this share of the steps if below 1. It changes nothing that is trained; the report draws the curves.",
    )
    select_checkpoint: Literal["last", "best"] = Field(
        "last",
        description="The adapter that is saved and scored: the `last` one, or the one with the `best` (lowest) validation loss "
        "at an evaluation point or at the end. `best` needs `eval_steps`, and test rows to report on.",
    )
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        description="Stop an arm after so many scores in a row that are not better than its best validation loss. The other arms "
        "train on. Needs `eval_steps`, and test rows to report on.",
    )
    early_stopping_threshold: float = Field(
        0.0,
        ge=0,
        description="With `early_stopping_patience`: a score counts as better if its loss is lower by more than this.",
    )
    max_generation_samples: int = Field(
        16, ge=0, description="Held-out rows answered by greedy generation for exact match; 0 for none."
    )
    max_new_tokens: int = Field(32, ge=1, description="Length limit of a generated answer.")
    exact_match_pattern: str | None = Field(
        None,
        description="Regular expression; its first group in the answer is compared (GSM8K: `#### (.+)`).",
    )

    @field_validator(
        "learning_rate",
        "eval_fraction",
        "test_fraction",
        "num_train_epochs",
        "warmup_ratio",
        "weight_decay",
        "max_grad_norm",
        "lora_dropout",
        "lora_alpha",
        "loraplus_lr_ratio",
        "neftune_noise_alpha",
        "label_smoothing_factor",
        "checkpoint_minutes",
        "early_stopping_threshold",
        mode="before",
    )
    @classmethod
    def _whole_numbers_are_numbers(cls, value: object) -> object:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator(*_SETS, mode="before")
    @classmethod
    def _lists_are_tuples(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator(*_SETS)
    @classmethod
    def _lists_are_sets(cls, value: object) -> object:
        return tuple(sorted(set(value))) if isinstance(value, tuple) else value

    @field_validator("lora_alpha")
    @classmethod
    def _alpha_policy_is_known(cls, value: float | str) -> float | str:
        if isinstance(value, float):
            return value
        match = _ALPHA_POLICY.fullmatch(value)
        if match is None:
            raise ValueError(f"{value!r} is neither a number nor a policy such as r, 2r or 0.5r")
        if not 0 < float(match["factor"] or 1) <= 1e6:
            raise ValueError(f"{value!r}: the factor must be greater than 0 and at most 1000000")
        return value

    @field_validator("lr_scheduler_type", mode="before")
    @classmethod
    def _schedule_is_known_beforehand(cls, value: object) -> object:
        if isinstance(value, str) and value in ADAPTIVE:
            raise ValueError(
                f"{value} follows a measured loss, so arms would not have the rates that the file says; take a schedule "
                "such as cosine"
            )
        return value

    @field_validator("alpha_pattern", mode="before")
    @classmethod
    def _alphas_are_numbers(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        return {key: float(each) if type(each) is int else each for key, each in value.items()}

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _patterns_compile(cls, value: Mapping[str, object]) -> Mapping[str, object]:
        for pattern in value:
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return value

    @field_validator("peft")
    @classmethod
    def _peft_is_canonical(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        return canonical(value)

    @field_validator("init_lora_weights")
    @classmethod
    def _initial_weights_are_known(cls, value: object) -> object:
        if value is False:
            raise ValueError("false draws lora_B at random too, which PEFT has for debugging only; remove it")
        if value in REFUSED_INITIAL_WEIGHTS:
            raise ValueError(f"{REFUSED_INITIAL_WEIGHTS[str(value)]}; take pissa or olora")
        if isinstance(value, str) and not _INITIAL_WEIGHTS.fullmatch(value):
            raise ValueError(
                f"{value!r} is not one of true, {', '.join(get_args(InitialWeights))} or pissa_niter_N"
            )
        return value

    @field_validator("exact_match_pattern")
    @classmethod
    def _pattern_compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                groups = re.compile(value).groups
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"not a regular expression: {error}") from error
            if groups < 1:
                raise ValueError("needs one group, the part that is compared: `#### (.+)`")
        return value

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.num_train_epochs is not None and self.max_steps is not None:
            raise ValueError("num_train_epochs and max_steps are both given; keep one")
        return self

    @model_validator(mode="after")
    def _one_test_split(self) -> Self:
        if self.test_fraction is None:
            return self
        if self.test_dataset_path is not None:
            raise ValueError("test_dataset_path and test_fraction are both given; keep one")
        if self.eval_dataset_path is None and self.eval_fraction + self.test_fraction >= 1:
            raise ValueError("eval_fraction and test_fraction leave no row to train on; lower one")
        return self

    def __hash__(self) -> int:
        """Equal settings have one hash. pydantic's own cannot hash the mappings of patterns."""
        return hash(json.dumps(self.model_dump(mode="json"), sort_keys=True))

    @property
    def has_test_split(self) -> bool:
        """Whether there are test rows. Results are then reported on them, and the held-out rows only choose."""
        return names_test_rows(
            {"test_dataset_path": self.test_dataset_path, "test_fraction": self.test_fraction}
        )

    @property
    def selects(self) -> bool:
        """Whether validation scores on the way decide which adapter is kept, or when training stops."""
        return self.select_checkpoint == "best" or self.early_stopping_patience is not None

    @property
    def lora_alpha_value(self) -> float:
        """Alpha as a number: a policy such as `2r` is applied to the rank."""
        if isinstance(self.lora_alpha, str):
            match = _ALPHA_POLICY.fullmatch(self.lora_alpha)
            assert match is not None
            return float(match["factor"] or 1) * self.lora_rank
        return self.lora_alpha

    @property
    def lora_scaling(self) -> float:
        """The factor on B A x: alpha / r, or alpha / sqrt(r) with `use_rslora` (arXiv 2312.03732)."""
        return self.lora_alpha_value / (self.lora_rank**0.5 if self.use_rslora else self.lora_rank)

    @property
    def arm_method(self) -> ArmMethod:
        """The method that trains the arm."""
        return ArmMethod.from_values({key: getattr(self, key) for key in (*METHOD_KEYS, *TRAINING_KEYS)})


class Settings(AskedSettings):
    """The settings of one arm with every value resolved. With a seed they make an experiment."""

    learning_rate: Rate = Field(2e-4, description="Peak learning rate.")
    method: Literal["lorafa", "full"] | None = Field(None, description="A method that no other key says.")

    @model_validator(mode="before")
    @classmethod
    def _schedule_as_it_acts(cls, values: Any) -> Any:
        """Options at their defaults are left out, so that equal schedules are equal settings."""
        options = values.get("lr_scheduler_kwargs")
        if not isinstance(options, Mapping) or not options:
            return values
        name = values.get("lr_scheduler_type", cls.model_fields["lr_scheduler_type"].default)
        return {**values, "lr_scheduler_kwargs": acting_options(name, options)}

    @model_validator(mode="after")
    def _schedule_is_possible(self) -> Self:
        problem = self._schedule_problem(self.max_steps)
        if problem is not None:
            raise ValueError(problem)
        return self

    def check_schedule(self, *, num_steps: int) -> None:
        """Check the schedule once the steps of a training that is measured in epochs are known.

        Raises:
            StudyError: the warm-up, or the schedule's own steps, are longer than the training.
        """
        problem = self._schedule_problem(num_steps)
        if problem is not None:
            raise StudyError(problem)

    def _schedule_problem(self, num_steps: int | None) -> str | None:
        values = {key: getattr(self, key) for key in SCHEDULE_KEYS}
        problem = schedule_problem({**values, "max_steps": num_steps})
        return None if problem is None else f"{problem[0]}: {problem[1]}"


def settings_from_options(**values: object) -> Settings:
    """Settings from a command's options.

    Raises:
        StudyError: a value that a suite file may not have.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise StudyError("\n".join(problems)) from error


#: Keys in which the arms of one pack may differ. All other keys are equal within a pack.
ARM_KEYS = frozenset(
    {
        "lora_rank", "lora_alpha", "use_rslora", "lora_dropout", "target_modules", "layers_to_transform",
        "exclude_modules", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", *WARMUP_KEYS, "weight_decay", "max_grad_norm",
        "adam_beta1", "adam_beta2", "adam_epsilon", "num_train_epochs", "max_steps", "eval_steps",
        "select_checkpoint", "early_stopping_patience", "early_stopping_threshold", "label_smoothing_factor",
        *METHOD_KEYS,
        *TRAINING_KEYS,
    }
)  # fmt: skip

#: Keys for the paths of files and the layout of the work, and for the last bits. They are not part of an experiment's
#: identity.
LAYOUT_KEYS = frozenset(
    {
        "base_model", "dataset_path", "eval_dataset_path", "test_dataset_path", "forgetting_dataset_path",
        "max_arms_per_pack", "checkpoint_steps", "checkpoint_minutes", "deterministic",
    }
)  # fmt: skip

#: Keys for scores during training and for what these decide.
SELECTION_KEYS = frozenset(
    {"eval_steps", "select_checkpoint", "early_stopping_patience", "early_stopping_threshold"}
)


def names_test_rows(values: Mapping[str, Any]) -> bool:
    """Whether settings, as plain values, have test rows: a file of their own, or a share."""
    return any(values.get(key) is not None for key in ("test_dataset_path", "test_fraction"))


def keys_without_effect(settings: Mapping[str, Any]) -> frozenset[str]:
    """The keys of these settings that change no result. Scores on the way change none unless they decide something.

    Settings of older runs may lack keys.
    """
    stays_last = settings.get("select_checkpoint", "last") == "last"
    if stays_last and settings.get("early_stopping_patience") is None:
        return LAYOUT_KEYS | SELECTION_KEYS
    return LAYOUT_KEYS
