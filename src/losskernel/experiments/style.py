"""The look that all figures share, and how they are written."""

from __future__ import annotations

import math
import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axis import Axis

from losskernel.files import atomic_path

# Okabe and Ito's palette, told apart by all common kinds of color blindness.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, GRAY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
    "#7F7F7F",
)
DIVERGING = "RdBu_r"
# What figures call the networks of the configuration.
NETWORKS = {
    "inception_v1": "Inception-v1",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "inception_tiny": "small Inception",
    "resnet": "small ResNet",
    "vit": "small ViT",
}


def apply_style() -> None:
    """Set fonts, sizes and colors for figures that are read at column width."""
    sns.set_theme(context="paper", style="ticks", font_scale=1.0)
    plt.rcParams.update(
        {
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.hashsalt": "losskernel",  # same input, same bytes
            "pdf.fonttype": 42,
            "savefig.dpi": 160,
        }
    )


def log_axis(axis: Axis, low: float, high: float) -> None:
    """Make an x or y axis logarithmic from ``low`` to ``high``, with ticks such as 20, 50, 100."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**exponent for exponent in exponents for digit in (1, 2, 5)]
    shown = [tick for tick in ticks if low <= tick <= high]
    axis.set_ticks(shown, labels=[f"{tick:g}" for tick in shown])
    axis.set_ticks([], minor=True)


def save_figure(figure: plt.Figure, output: Path, output_png: Path) -> None:
    """Write a figure as vector PDF and as PNG, without a date, so that equal figures are equal."""
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")
    for path in (output, output_png):
        metadata = {"CreationDate": None} if path.suffix == ".pdf" else {}
        with atomic_path(path) as temporary:
            figure.savefig(temporary, metadata=metadata)
    plt.close(figure)
