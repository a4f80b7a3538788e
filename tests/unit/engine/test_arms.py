import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from lorastudy.engine.arms import initial_lora_A, stream_seed


def draw(*, r=4, seed=0, name="m", in_features=16):
    arm = tiny.make_arm((name,), r=r, seed=seed)
    return initial_lora_A(arm, module_name=name, in_features=in_features)


def test_a_smaller_rank_starts_with_the_larger_ones_first_rows():
    assert torch.equal(draw(r=8)[:3], draw(r=3))


def test_seeds_and_modules_start_differently():
    assert not torch.equal(draw(), draw(seed=1))
    assert not torch.equal(draw(), draw(name="n"))


def test_the_distribution_is_pefts():
    """Kaiming uniform with a = sqrt(5): U(-b, b), b = 1 / sqrt(inputs), so a standard deviation of b / sqrt(3)."""
    weights = draw(r=200, in_features=100)
    assert weights.dtype is torch.float32
    assert weights.abs().max() <= 0.1
    assert weights.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)
    assert abs(weights.mean().item()) < 0.002


@given(st.lists(st.tuples(st.integers(), st.text()), unique=True, min_size=2, max_size=20))
def test_streams_have_seeds_of_their_own_within_torchs_range(names):
    seeds = {stream_seed(*name) for name in names}
    assert len(seeds) == len(names)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_streams_seed_is_the_same_on_every_machine():
    # python -c "import hashlib; print(int.from_bytes(hashlib.sha256(b'dropout\x1f0\x1fm').digest()[:8], 'big') >> 1)"
    assert stream_seed("dropout", 0, "m") == 700646396179028010
