"""All that computes on a device, on the CPU and on the emulated one: ``LIBRARY OUTPUT``.

A process of its own, since a device that is registered stays so. Writes an archive of arrays named
``<device>/<what>``.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from torch.utils.data import TensorDataset

from losskernel import Probe, sample_losses
from losskernel.data.augmentation import normalized, random_crop_flip
from losskernel.experiments.mislabel.labels import SeveralLabels
from losskernel.gradients.linear_response import gram, linear_part
from losskernel.gradients.per_sample import gradient_norms, per_sample_gradients
from losskernel.models.features import penultimate_features
from losskernel.models.transformer import ArithmeticTransformer
from losskernel.sampling.engines import make_engine
from losskernel.sampling.inputs import Inputs
from losskernel.sampling.parameters import select_parameters
from losskernel.sampling.pilot import propose_probe
from losskernel.sampling.sample import cross_entropy
from losskernel.sampling.stability import noise_moments
from losskernel.seeds import fill_normal, torch_seed
from losskernel.training.train import TrainingSettings, train

PROBE = Probe(n_beta=10, gamma=1e3, step_size=1e-4)
RUN = {"chains": 3, "draws": 3, "burn_in": 2, "steps_per_draw": 2, "batch_size": 7}
RUN |= {"eval_batch_size": 8, "progress": False}


class NoiseOfTheCPU(torch.Generator):
    """The emulated device has no generator; a GPU's would draw other numbers than the CPU's."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")


def transformer():
    torch.manual_seed(0)
    return ArithmeticTransformer(11, width=8, heads=2, mlp_width=16)


def convolutions():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 4))
    return model.to(memory_format=torch.channels_last)


def data():
    torch.manual_seed(1)
    sequences = torch.randint(0, 11, (20, 4)), torch.randint(0, 11, (20,))
    images = torch.randn(20, 3, 6, 6), torch.randint(0, 4, (20,))
    return sequences, images


def everything(device: str) -> dict[str, np.ndarray]:
    """Arrays by what they are."""
    sequences, images = data()
    found = {}

    def sample(name, model, pairs, **options):
        options = RUN | {"device": device} | options
        found[name] = sample_losses(model, pairs, PROBE, **options).losses

    for engine in ("batched", "sequential"):
        sample(f"losses, {engine}", transformer(), sequences, engine=engine)
        one = {"engine": engine, "device": device}
        found[f"gradient norms, {engine}"] = gradient_norms(transformer(), sequences, **one)
        inputs, names = Inputs(sequences, device), select_parameters(transformer(), "trainable")
        made = make_engine(engine, transformer(), cross_entropy, names, inputs.take([0, 1]), device)
        moments = noise_moments(made, inputs, made.center, 7, 8, 0)
        found[f"gradient noise, {engine}"] = np.array(moments)
        pilot = propose_probe(transformer(), sequences, rise=0.01, **one)
        found[f"pilot, {engine}"] = np.array([pilot.probe.gamma, pilot.rise])
    sample("losses, convolutions", convolutions(), images)
    sample("losses, a data set", convolutions(), TensorDataset(*images))
    sample("losses, one by one", convolutions(), images, engine="sequential")
    several = SeveralLabels(convolutions(), images[0], 4)
    labels = torch.arange(4).repeat(20)
    sample("losses, all labels", several, images, probe_data=(several.pairs, labels))
    with tempfile.TemporaryDirectory() as folder:
        journal, gradients = (Path(folder) / name for name in "jg")
        for draws in (1, 3):  # the second goes on where the first ended
            kept = {"journal": journal, "displacements": True, "draws": draws}
            sample("losses, continued", convolutions(), images, **kept)
        of_inputs = per_sample_gradients(
            convolutions(), images, gradients, device=device, progress=False
        )
        found["Gram matrix"] = gram(of_inputs, progress=False)
        found["linear part"] = linear_part(of_inputs, journal, progress=False)
    settings = TrainingSettings(
        steps=4, warmup=1, batch_size=8, evaluate_every=2, learning_rate=0.01
    )
    model, tokens, answers = (part.to(device) for part in (transformer(), *sequences))
    found["training"] = np.array(train(model, tokens, answers, settings, 0, progress=False).loss)
    found["features"] = penultimate_features(model, tokens.split(8)).cpu().numpy()
    pixels = (images[0] * 50 + 128).clamp(0, 255).byte().to(device)
    with tempfile.TemporaryDirectory() as folder:
        history = train(
            convolutions().to(device),
            pixels,
            images[1].to(device),
            settings,
            0,
            Path(folder),
            [0, 4],
            augment=lambda batch, generator: normalized(random_crop_flip(batch, 6, generator)),
            progress=False,
        )
        found["training with checkpoints"] = np.array(history.loss)
    return found | {"noise": pieces(device)}


def pieces(device: str) -> np.ndarray:
    """Noise of more numbers than a GPU may have threads, which is drawn a piece at a time."""
    count = 2 * 2**15 + 100
    if device == "cpu":
        generator = torch.Generator().manual_seed(torch_seed(0, "noise", 1, 2))
        parts = torch.empty(count).split(2**15)
        return torch.cat([part.normal_(generator=generator) for part in parts]).numpy()
    noise = torch.empty(count, device=device)
    fill_normal(noise, torch.Generator(device), 0, 1, 2)
    return noise.cpu().numpy()


def main(library: str, output: str) -> None:
    """Run on both devices."""
    warnings.filterwarnings("ignore", message=".*lazily initialized.*")
    _setup_privateuseone_for_python_backend("emulated")
    torch.ops.load_library(library)
    torch.Generator = NoiseOfTheCPU
    try:
        torch.ones(1, device="emulated") + torch.ones(2)
    except RuntimeError as error:
        assert "same device" in str(error)
    else:
        raise AssertionError("tensors of two devices were added")
    results = {d: everything(d) for d in ("cpu", "emulated")}
    arrays = {f"{d}/{name}": array for d, found in results.items() for name, array in found.items()}
    np.savez(output, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
