import pytest

import tiny
from lorastudy.engine.padded_forward import greedy_answers
from lorastudy.evaluation.evaluate_adapter import profile_inference

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [(3, 4, 5), (6,), (7, 8)]


def test_generation_is_timed_prompt_by_prompt():
    profile = profile_inference(tiny.make_base("phi"), PROMPTS, max_new_tokens=4)
    assert (profile.num_prompts, profile.prompt_tokens, profile.new_tokens) == (3, 6, 12)
    assert profile.first_token_seconds > 0
    assert profile.new_tokens_per_second == pytest.approx(1 / profile.seconds_per_new_token)
    assert profile.memory_kind == "cpu_resident"
    assert profile.peak_memory_bytes > 0


def test_an_answer_that_ends_at_once_has_no_time_per_further_token():
    base = tiny.make_base("phi")
    base.model.lm_head.bias[tiny.EOS] = 1e4
    profile = profile_inference(base, PROMPTS, max_new_tokens=4)
    assert profile.new_tokens == 3  # the end marker is a token, too
    assert profile.seconds_per_new_token is None
    assert profile.new_tokens_per_second is None


def test_left_padding_changes_no_answer():
    for architecture in tiny.ARCHITECTURES:
        base = tiny.make_base(architecture)
        together = greedy_answers(base, PROMPTS, copies=2, max_new_tokens=5)
        alone = [greedy_answers(base, [prompt], copies=1, max_new_tokens=5)[0] for prompt in PROMPTS]
        assert together == alone * 2
