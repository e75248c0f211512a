import pytest
import torch
from torch import nn

from losskernel.errors import ConfigError
from losskernel.models.inception_small import (
    InceptionSmall,
    calibrate_batch_norm,
    fold_batch_norm,
    with_batch_norm,
)
from losskernel.models.inception_v1 import BLOCKS, InceptionBlock


def small(width=0.1, seed=0, **options) -> InceptionSmall:
    torch.manual_seed(seed)
    return InceptionSmall(7, width, **options)


def test_at_full_width_the_blocks_are_the_published_ones():
    model = small(1.0)
    for name, widths in BLOCKS.items():
        published = InceptionBlock(*widths).state_dict()
        own = model.get_submodule(name).state_dict()
        assert {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in published.items()}
    assert model.classifier.in_features == 1024


@pytest.mark.parametrize("size", [32, 48, 64])
def test_shapes_and_widths(size):
    model = small(0.25).eval()
    x = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        assert model.features(x).shape == (2, 256) and model(x).shape == (2, 7)
    channels = {m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert all(number % 8 == 0 for number in channels)
    grids = []
    for name in ("inception_3a", "inception_4a", "inception_5a"):
        hook = lambda _, x, y: grids.append(y.shape[-1])  # noqa: E731
        model.get_submodule(name).register_forward_hook(hook)
    with torch.inference_mode():
        model(x)
    assert grids == [size // 4, size // 8, size // 16]


def test_no_width():
    with pytest.raises(ConfigError, match="width = 0"):
        small(0)


def test_initial_activations_neither_vanish_nor_explode():
    features = small(1.0).features(torch.randn(4, 3, 48, 48))
    assert 0.1 < features.std() < 10


def trained(seed=0) -> tuple[nn.Module, torch.Tensor]:
    """A normalized network after a few steps, all of whose parameters and statistics moved."""
    model = with_batch_norm(small(seed=seed))
    x, y = torch.randn(16, 3, 32, 32), torch.arange(16) % 7
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x


def test_every_convolution_is_normalized():
    model = with_batch_norm(small())
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(convolutions) == len(norms) == 3 + 6 * len(BLOCKS)
    assert all(convolution.bias is None for convolution in convolutions)


def test_folding_leaves_the_function_and_takes_the_normalization():
    model, x = trained()
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold_batch_norm(model)
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)
    assert folded.state_dict().keys() == small().state_dict().keys()
    assert not folded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_folded_weights_do_not_see_the_scale_that_normalization_hides():
    model, x = trained()
    calibrate_batch_norm(model, [x])
    folded = fold_batch_norm(model)
    with torch.no_grad():
        model.conv1.conv.weight *= 10
    calibrate_batch_norm(model, [x])
    # What batch normalization adds to the variance, 1e-5, is not scaled.
    torch.testing.assert_close(
        fold_batch_norm(model).conv1.weight, folded.conv1.weight, rtol=1e-3, atol=1e-5
    )


def test_calibrated_statistics_are_plain_averages_over_batches():
    model, x = trained()
    batches = x.split(8)
    calibrate_batch_norm(model, batches)
    outputs = [
        nn.functional.conv2d(b, model.conv1.conv.weight, stride=2, padding=2) for b in batches
    ]
    norm = model.conv1.norm
    means = torch.stack([output.mean((0, 2, 3)) for output in outputs])
    variances = torch.stack([output.var((0, 2, 3)) for output in outputs])
    torch.testing.assert_close(norm.running_mean, means.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, variances.mean(0), rtol=1e-4, atol=1e-5)
    assert not model.training and norm.momentum == 0.1
    again = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calibrate_batch_norm(model, batches)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again[name]), name  # nothing is left of what was there before


def test_dropout_acts_in_training_only():
    model, x = small(dropout=0.5), torch.randn(2, 3, 32, 32)
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
