"""One way to load an image classifier with its own preprocessing, whoever published it."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from losskernel.errors import ConfigError, LossKernelError, WeightsError, needs
from losskernel.models.inception_v1 import InceptionV1, from_caffe_names, initialize

CAFFE_MEAN_BGR = (104.0, 117.0, 123.0)


@dataclass(frozen=True)
class Classifier:
    """A model in evaluation mode, and what turns an RGB image into its input tensor, if known."""

    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor] | None


def caffe_preprocessing(image_size: int = 224) -> Callable[[Image.Image], Tensor]:
    """Shorter side 256, center crop 224, resized to ``image_size``; BGR 0-255 minus the mean.

    The crop starts at ``floor((side - 224) / 2)`` as in Caffe; torchvision rounds, which moves odd
    margins by a pixel and the accuracy on 1,000 images by 0.1 percentage points.
    """
    # torchvision and timm are slow to import, and a run needs one of them.
    with needs("vision"):
        from torchvision.transforms import functional as transforms

    def preprocess(image: Image.Image) -> Tensor:
        if min(image.size) != 256:
            image = transforms.resize(image, 256, antialias=True)
        left, top = (side - 224 for side in image.size)
        image = image.crop((left // 2, top // 2, left // 2 + 224, top // 2 + 224))
        if image_size != 224:
            image = transforms.resize(image, image_size, antialias=True)
        rgb = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float()
        return rgb.flip(0) - torch.tensor(CAFFE_MEAN_BGR)[:, None, None]

    return preprocess


def load_classifier(
    name: str,
    weights: str | Path = "pretrained",
    image_size: int | None = None,
    seed: int = 0,
    fit_outputs: bool = True,
) -> Classifier:
    """Load an image classifier.

    Args:
        name: ``inception_v1`` (as published), ``torchvision:<name>``, ``timm:<name>``, or your own,
            ``<file>.py:<function>``: the function is called without arguments and returns the model
            or, where there are images to read, ``(model, preprocess)`` with what turns an RGB
            :class:`PIL.Image.Image` into its input tensor.
        weights: ``pretrained`` (downloaded by torchvision or timm), ``random`` (drawn from
            ``seed``; a control), or a file: safetensors, or a torch state dict, which is read with
            ``weights_only`` so that nothing in it is executed. A model of your own comes with its
            weights if this is ``pretrained``.
        image_size: side of the square input in pixels; the model's own if not given.
        seed: of random weights.
        fit_outputs: give a model of torchvision or timm as many outputs as the last linear layer
            has in the file; otherwise weights with another number of classes do not fit.

    Raises:
        ConfigError: the name is unknown, or your own function is not as above.
        WeightsError: the weights cannot be read or do not fit; names the file and the tensor.
    """
    source, _, model_name = name.rpartition(":")
    file = None if str(weights) in ("pretrained", "random") else Path(weights)
    pretrained = str(weights) == "pretrained"
    if name == "inception_v1" and pretrained:
        raise WeightsError("inception_v1: give the path of bvlc_googlenet.safetensors as weights")
    state = None if file is None else read_weights(file)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "inception_v1":
            model, preprocess = InceptionV1(), caffe_preprocessing(image_size or 224)
            if file is None:
                initialize(model)
        elif source in BUILDERS:
            build = BUILDERS[source]
            try:
                model, preprocess = build(model_name, pretrained, image_size)
            except OSError as error:  # what a network that cannot be reached raises
                raise WeightsError(
                    f"{name}: the pretrained weights cannot be downloaded ({error}); connect to "
                    "the network, or give a file as weights"
                ) from error
            state = _from_lite_names(state, model)
            outputs = _outputs(model, state) if fit_outputs else None
            if outputs is not None:
                model, preprocess = build(model_name, pretrained, image_size, outputs)
        elif source.endswith(".py"):
            model, preprocess = _own(Path(source), model_name)
        else:
            raise ConfigError(
                f"model: '{name}' is not inception_v1, torchvision:<name> or timm:<name>, nor "
                "<file>.py:<function>"
            )
    if file is not None:
        load_weights(model, from_caffe_names(state) if name == "inception_v1" else state, file)
    model.eval()
    return Classifier(model.to(memory_format=torch.channels_last), preprocess)


def _torchvision(name: str, pretrained: bool, image_size: int | None, outputs: int | None = None):
    with needs("vision"):
        import torchvision

    try:
        weights = torchvision.models.get_model_weights(name).DEFAULT
    except ValueError as error:
        raise ConfigError(f"model: torchvision has no model '{name}'") from error
    options = {"init_weights": True} if name == "googlenet" and not pretrained else {}
    options |= {"num_classes": outputs} if outputs else {}
    model = torchvision.models.get_model(name, weights=weights if pretrained else None, **options)
    if getattr(model, "aux_logits", False):  # training heads, absent from pretrained weights
        model.aux_logits, model.aux1, model.aux2 = False, None, None
    preprocess = weights.transforms()
    if image_size:  # the whole image scaled along, or the crop would have a border, or be a detail
        scale = image_size / preprocess.crop_size[0]
        resized = round(preprocess.resize_size[0] * scale)
        preprocess = weights.transforms(crop_size=image_size, resize_size=resized)
    return model, preprocess


def _timm(name: str, pretrained: bool, image_size: int | None, outputs: int | None = None):
    with needs("vision"):
        import timm

    head = {"num_classes": outputs} if outputs else {}
    model = from_timm(name, pretrained=pretrained, **head)
    options = {"input_size": (3, image_size, image_size)} if image_size else {}
    config = timm.data.resolve_data_config(options, model=model)
    return model, timm.data.create_transform(**config, is_training=False)


def from_timm(name: str, **options) -> nn.Module:
    """A model of timm, with options of its own for its architecture.

    Raises:
        ConfigError: timm has no such model, or the model no such option.
    """
    with needs("vision"):
        import timm

    try:
        return timm.create_model(name, **options)
    except (RuntimeError, TypeError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"model: timm has no model '{name}' as asked for ({said})") from error


BUILDERS = {"torchvision": _torchvision, "timm": _timm}


def _from_lite_names(state: dict[str, Tensor] | None, model: nn.Module) -> dict[str, Tensor] | None:
    """The names of timm for an EfficientNet-Lite whose file has those of efficientnet_pytorch.

    Both hold the same tensors in the same order; a file in another order keeps its names, which do
    not fit.
    """
    if state is None or "_conv_stem.weight" not in state:
        return state
    names = list(model.state_dict())
    if [n.rpartition(".")[2] for n in names] != [n.rpartition(".")[2] for n in state]:
        return state
    return dict(zip(names, state.values(), strict=True))


def _outputs(model: nn.Module, state: dict[str, Tensor] | None) -> int | None:
    """Outputs of the last linear layer in ``state``, if they are not as many as the model's."""
    linear = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    if state is None or not linear:
        return None
    name, module = linear[-1]
    stored = state.get(f"{name}.weight")
    if stored is None or stored.ndim != 2 or len(stored) == module.out_features:
        return None
    return len(stored)


def _own(path: Path, function: str) -> tuple[nn.Module, Callable[[Image.Image], Tensor] | None]:
    """What a function of a user's own file returns.

    The file is imported as one of a name that can be imported: it may import what lies beside it,
    and define data classes, which look their module up by its name.
    """
    if not path.is_file():
        raise ConfigError(f"model: {path}: no such file; correct the path")
    beside = str(path.resolve().parent)
    if beside not in sys.path:
        sys.path.insert(0, beside)
    name = path.stem if path.stem not in sys.modules else f"model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, function):
            raise ConfigError(f"model: {path} has no function '{function}'")
        made = getattr(module, function)()
    except LossKernelError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename).resolve().parent == Path(beside)]
        where = f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""
        said = " ".join(str(error).split())
        raise ConfigError(
            f"model: {path}:{function} fails ({where}{type(error).__name__}: {said}); mend it "
            "until the function can be called without arguments"
        ) from error
    model, preprocess = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not (isinstance(model, nn.Module) and (preprocess is None or callable(preprocess))):
        raise ConfigError(
            f"model: {path}:{function} must return a torch module, or with it a function that "
            "turns an image into its input tensor"
        )
    return model, preprocess


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A state dict from safetensors or, without unpickling objects, from a torch file.

    Raises:
        WeightsError: the file is missing, unreadable, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; correct the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # pickle's own errors have no common base in torch.load
        raise _unreadable(path, error) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path}: not a state dict of tensors; save model.state_dict()")
    return state


def _unreadable(path: Path, error: Exception) -> WeightsError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return WeightsError(f"{path}: unreadable as weights ({reason}); fetch or save it again")


def load_weights(model: nn.Module, state: dict[str, Tensor], source: str | Path) -> None:
    """Load ``state`` into ``model``; every tensor must fit.

    Raises:
        WeightsError: naming ``source`` and the first tensor that is missing, surplus or of the
            wrong shape.
    """
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in state:
            raise WeightsError(
                f"{source}: has no tensor '{name}'; these are weights of another architecture"
            )
        if state[name].shape != shape:
            raise WeightsError(
                f"{source}: '{name}' has shape {tuple(state[name].shape)}, the model needs "
                f"{tuple(shape)}; use weights of this architecture and number of classes"
            )
    surplus = sorted(set(state) - set(expected))
    if surplus:
        raise WeightsError(
            f"{source}: has a tensor '{surplus[0]}' that the model lacks; "
            "these are weights of another architecture"
        )
    model.load_state_dict(state)
