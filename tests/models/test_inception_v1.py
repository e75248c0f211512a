import pytest
import torch
from torch import nn

from losskernel.data.images import WnidImages
from losskernel.models.inception_v1 import InceptionV1, from_caffe_names, local_response_norm
from losskernel.models.loader import load_classifier


@pytest.mark.parametrize("shape", [(2, 64, 5, 5), (1, 3, 4, 4), (1, 1, 2, 2)])
@pytest.mark.parametrize(("alpha", "k"), [(1e-4, 1.0), (0.5, 2.0)])
def test_local_response_norm_is_torchs(shape, alpha, k):
    torch.manual_seed(0)
    x = 100 * torch.randn(shape)
    expected = nn.LocalResponseNorm(5, alpha, 0.75, k)(x)
    torch.testing.assert_close(local_response_norm(x, alpha, k), expected, rtol=1e-5, atol=1e-6)


def test_parameters_and_shapes():
    model = InceptionV1().eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 6_998_552
    assert len(model.state_dict()) == 116
    with torch.inference_mode():
        for size in (64, 160):
            x = torch.randn(2, 3, size, size)
            assert model.features(x).shape == (2, 1024)
            assert model(x).shape == (2, 1000)


def test_untrained_weights_keep_the_images_apart():
    model = load_classifier("inception_v1", "random", 64, seed=0).model
    layer = model._modules["conv2/3x3"]
    # Uniform with variance 1 / fan-in; 64 * 9 inputs, 110,592 weights: 1 % is twice the error.
    assert layer.weight.std().item() == pytest.approx((64 * 9) ** -0.5, rel=0.01)
    assert layer.weight.abs().max() <= (3 / (64 * 9)) ** 0.5
    x = 50 * torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = model(x)
    assert logits.std(dim=0).mean() > 0.01  # of one class over images; PyTorch's leaves 1e-5
    assert logits.std(dim=1).mean() < 3  # of one image over classes: no saturated softmax


def test_caffe_names_become_those_of_the_module():
    renamed = from_caffe_names({"inception_3a/3x3.weight": 1, "conv1/7x7_s2.bias": 2})
    assert renamed == {"inception_3a.3x3.weight": 1, "conv1/7x7_s2.bias": 2}


@pytest.mark.data
def test_accuracy_on_images(shared_data):
    """The published weights on every tenth class; data/README.md states 0.746 for all of them."""
    classifier = load_classifier("inception_v1", shared_data / "bvlc_googlenet.safetensors")
    images = WnidImages(shared_data / "imagenet_sample", classifier.preprocess)
    assert len(images) == 1000
    tenth = torch.utils.data.Subset(images, range(0, 1000, 10))
    loader = torch.utils.data.DataLoader(tenth, batch_size=50)
    logits, labels = [], []
    with torch.inference_mode():
        for x, y in loader:
            logits.append(classifier.model(x.contiguous(memory_format=torch.channels_last)))
            labels.append(y)
    logits, labels = torch.cat(logits), torch.cat(labels)
    top5 = logits.topk(5).indices == labels[:, None]
    assert top5[:, 0].sum() == 74
    assert top5.any(dim=1).sum() == 93
    assert round(nn.functional.cross_entropy(logits, labels).item(), 3) == 0.865
