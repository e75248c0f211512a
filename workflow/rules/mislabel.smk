"""Experiment 4: find wrong labels by self-covariance, against what is in use.

On digits always. On photographs where `mislabel.imagenet.include` and `mislabel.tiny_imagenet.include`
say so: from tracked intermediates, or computed where the config names images.
"""

MISLABEL = f"{RESULTS}/mislabel"
mislabel = config["mislabel"]
corrupted = mislabel["imagenet"]
CORRUPTED_SETTINGS = ("max_inputs", "wrong_labels", "draws", "eval_batch_size")
corruption = settings(
    "imagenet",
    LOADING,
    image_folder=IMAGES,
    seed=SEED,
    device=imagenet["kernel"]["device"],
    **{key: corrupted[key] for key in CORRUPTED_SETTINGS},
)
GAMMAS = [f"{gamma:g}" for gamma in corrupted["gammas"]]
PHOTOGRAPHS = [name for name in ("imagenet", "tiny_imagenet") if mislabel[name]["include"]]
MISLABEL_FIGURES = ["mislabel_detection", *(f"mislabel_{name}" for name in PHOTOGRAPHS)]
TINY_IMAGENET = mislabel["tiny_imagenet"]["archive"]
PER_CLASS = {key: mislabel["tiny_imagenet"][key] for key in ("train_per_class", "test_per_class")}
# What is computed from photographs, or its tracked copies.
CORRUPTED = f"{REFERENCE if IMAGES is None else RESULTS}/mislabel/imagenet"
HEADS = f"{RESULTS if TINY_IMAGENET else REFERENCE}/mislabel/tiny_imagenet"


use rule step as mislabel_detect with:
    """Labels flipped before training: every method on the same networks, all shares and draws."""
    output:
        rows=f"{MISLABEL}/detection.csv",
        summary=f"{MISLABEL}/detection_summary.csv",
        scores=f"{MISLABEL}/detection.npz",
    params:
        **call(
            "mislabel.memorized.on_digits",
            settings=settings(
                "mislabel",
                "inputs hidden_widths training shares draws folds neighbors pilot sampling",
            ),
        ),


use rule step as mislabel_probe_time with:
    """Clean training, labels corrupted where the losses are recorded, as in the paper."""
    output:
        rows=f"{MISLABEL}/probe_time.csv",
        summary=f"{MISLABEL}/probe_time_summary.csv",
    params:
        **call(
            "mislabel.probe_time.on_digits",
            settings=settings(
                "mislabel", "inputs hidden_widths training shares draws neighbors pilot sampling"
            ),
        ),


use rule step as mislabel_along_rise with:
    """Labels flipped before training, by independent draws at ever larger rises of the loss."""
    output:
        f"{MISLABEL}/along_rise.csv",
    params:
        **call(
            "mislabel.memorized.along_rise",
            settings=settings("mislabel", "inputs hidden_widths training draws along_rise"),
        ),


use rule step as mislabel_copies with:
    """Self-covariance against the number of copies of an input in the training set."""
    output:
        rows=f"{MISLABEL}/copies.csv",
        summary=f"{MISLABEL}/copies_summary.csv",
    params:
        **call(
            "mislabel.memorized.copies",
            settings=settings("mislabel", "inputs hidden_widths training draws sampling copies"),
        ),


use rule step as mislabel_imagenet_sample with:
    """Losses of photographs under their given and some wrong labels, from one forward pass each."""
    input:
        manifest=MANIFEST,
    output:
        f"{MISLABEL}/imagenet/{{gamma}}.nc",
    benchmark:
        benchmark("mislabel_imagenet_sample/{gamma}")
    threads: imagenet["threads"]
    resources:
        mem_mb=MODEL_MEMORY,
        runtime=1440,
        gpu=gpus(imagenet["kernel"]),
    params:
        **call(
            "mislabel.probe_time.sample",
            settings=corruption,
            journal=f"{MISLABEL}/imagenet/{{gamma}}_journal",
        ),


use rule step as mislabel_imagenet_baselines with:
    """Margin and gradient norm of the same pairs of photograph and label, at the trained weights."""
    input:
        manifest=MANIFEST,
    output:
        f"{MISLABEL}/imagenet/baselines.npz",
    resources:
        mem_mb=MODEL_MEMORY,
        runtime=60,
    params:
        **call("mislabel.probe_time.baselines", settings=corruption),


use rule step as mislabel_imagenet with:
    """Shares and draws of corrupted labels of photographs, and how self-covariance finds them."""
    input:
        traces=expand(f"{CORRUPTED}/{{gamma}}.nc", gamma=GAMMAS),
        plain=f"{CORRUPTED}/baselines.npz",
    output:
        rows=f"{MISLABEL}/imagenet.csv",
        summary=f"{MISLABEL}/imagenet_summary.csv",
        scores=f"{MISLABEL}/imagenet_scores.npz",
    params:
        **call(
            "mislabel.probe_time.on_images",
            settings=settings("mislabel.imagenet.analysis", headline=HEADLINE),
        ),


use rule step as imagenet_direct_draws with:
    """The kernels by gradients against the losses of independent draws, under the right labels."""
    input:
        kernels=KERNELS["kernels"],
        traces=rules.mislabel_imagenet.input.traces,
    output:
        f"{IMAGENET}/direct_draws.csv",
    params:
        **call(
            "imagenet.controls.direct_draws",
            settings=settings("mislabel.imagenet.analysis", "jackknife_blocks"),
        ),


if TINY_IMAGENET == "generated":
    # Stand-ins for photographs, for a run without data: an archive of random textures.
    TINY_IMAGENET = f"{MISLABEL}/generated.zip"

    use rule step as mislabel_generate with:
        """Random textures in the layout of Tiny ImageNet, in place of photographs."""
        output:
            TINY_IMAGENET,
        params:
            **call(
                "development.sample.generate",
                settings=settings("mislabel.tiny_imagenet.generate", seed=SEED),
            ),


use rule imagenet_features as mislabel_features with:
    """Penultimate features of Tiny ImageNet's images, what the heads are trained on."""
    input:
        TINY_IMAGENET or [],
    output:
        f"{MISLABEL}/tiny_imagenet_features.npz",
    params:
        **call(
            "mislabel.memorized.features",
            settings=settings(
                "imagenet",
                "model weights image_size",
                archive=TINY_IMAGENET,
                **PER_CLASS,
                seed=SEED,
            ),
        ),


use rule step as mislabel_heads with:
    """Labels of photographs flipped before a head is trained on features: every method."""
    input:
        features=rules.mislabel_features.output,
    output:
        rows=f"{MISLABEL}/tiny_imagenet.csv",
        summary=f"{MISLABEL}/tiny_imagenet_summary.csv",
        scores=f"{MISLABEL}/tiny_imagenet.npz",
    params:
        **call("mislabel.memorized.on_features", settings=settings("mislabel.tiny_imagenet.heads")),


use rule mislabel_along_rise as mislabel_heads_along_rise with:
    """The same of heads on features of photographs."""
    input:
        features=rules.mislabel_features.output,
    output:
        f"{MISLABEL}/tiny_imagenet_along_rise.csv",
    params:
        **call("mislabel.memorized.along_rise", settings=settings("mislabel.tiny_imagenet.heads")),


use rule step as mislabel_claims with:
    """What was measured of the paper's numbers on wrong labels, and of the memorized ones."""
    input:
        imagenet=rules.mislabel_imagenet.output.summary if "imagenet" in PHOTOGRAPHS else [],
        tiny_imagenet=f"{HEADS}_summary.csv" if "tiny_imagenet" in PHOTOGRAPHS else [],
        probe_time=rules.mislabel_probe_time.output.summary,
        digits=rules.mislabel_detect.output.summary,
    output:
        f"{MISLABEL}/claims.csv",
    params:
        **call("mislabel.claims.claims", headline=HEADLINE),


use rule step as figure_mislabel_detection with:
    """AUC, precision and cost by method; self-covariances; AUC along the rise; copies."""
    input:
        **outputs(rules.mislabel_detect, "summary scores"),
        along_rise=rules.mislabel_along_rise.output,
        copies=rules.mislabel_copies.output.summary,
    output:
        **figure("mislabel_detection", "4 Wrong labels"),
    params:
        **call("mislabel.figures.detection"),


use rule step as figure_mislabel_imagenet with:
    """Photographs with labels wrong at probe time, along the rise: AUC, at equal loss, ratio."""
    input:
        **outputs(rules.mislabel_imagenet, "summary scores"),
    output:
        **figure("mislabel_imagenet", "4 Wrong labels"),
    params:
        **call("mislabel.figures.imagenet", headline=HEADLINE),


use rule step as figure_mislabel_tiny_imagenet with:
    """Heads on features of photographs, trained on flipped labels: as for digits, without copies."""
    input:
        summary=f"{HEADS}_summary.csv",
        scores=f"{HEADS}.npz",
        along_rise=f"{HEADS}_along_rise.csv",
    output:
        **figure("mislabel_tiny_imagenet", "4 Wrong labels"),
    params:
        **call("mislabel.figures.tiny_imagenet"),
