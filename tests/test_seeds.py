import numpy as np
import torch
from scipy.stats import kstest

from losskernel.seeds import fill_normal, numpy_generator, torch_seed


def noise(seed, *key):
    out = torch.empty(4000)
    fill_normal(out, torch.Generator(), seed, *key)
    return out


def test_a_stream_depends_on_its_key_alone():
    first = noise(0, 3, 7)
    noise(0, 3, 8)
    assert torch.equal(noise(0, 3, 7), first)
    assert numpy_generator(0, "batch", 1).random() == numpy_generator(0, "batch", 1).random()


def test_streams_of_different_keys_and_purposes_differ():
    keys = [(0, 1, 2), (0, 2, 1), (1, 1, 2), (0, 1), (0, 1, 2, 0)]
    seeds = {torch_seed(seed, "noise", *key) for seed, *key in keys}
    purposes = {torch_seed(0, purpose, 1, 2) for purpose in ("batch", "init", "order", "resample")}
    assert len(seeds | purposes) == 9
    assert all(0 <= seed < 2**63 for seed in seeds | purposes)


def test_noise_is_standard_normal_and_uncorrelated_between_keys():
    draws = np.stack([noise(0, chain, step).numpy() for chain in range(3) for step in range(3)])
    assert kstest(draws.ravel(), "norm").pvalue > 1e-4
    off = np.corrcoef(draws)[np.triu_indices(9, 1)]
    assert np.abs(off).max() < 4.5 / np.sqrt(draws.shape[1])  # 36 pairs, false alarm 2.5e-4


def test_torchs_global_state_is_not_touched():
    before = torch.random.get_rng_state()
    noise(5, 1)
    assert torch.equal(torch.random.get_rng_state(), before)
