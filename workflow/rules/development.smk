"""Experiment 5: the kernel along training, of an arithmetic network and of an image classifier.

The arithmetic network is always trained and sampled. The image classifier is if
`development.tiny_imagenet.archive` is given; else the tracked curves and maps of its networks are
read. It is left out altogether unless `enabled`.
"""

DEVELOPMENT = f"{RESULTS}/development"
growth = config["development"]["arithmetic"]
tiny = config["development"]["tiny_imagenet"]
classifier = partial(settings, "development.tiny_imagenet")
growing = partial(settings, "development.arithmetic")
trajectory = partial(settings, "development.tiny_imagenet.analysis", seed=SEED)
CLAIMED = settings("development.tiny_imagenet.analysis", "headline")
# What the arithmetic part has in common with experiment 1.
SHARED = {key: arithmetic[key] for key in ("network", "train_share", "rise", "directions")}
# What is measured of the networks, or its tracked copy.
MEASURED = f"{REFERENCE if tiny['archive'] is None else RESULTS}/development"
# Steps of the checkpoints of each network.
DEVELOPED = {str(seed): tiny["checkpoints"] for seed in tiny["training_seeds"]}
DEVELOPED |= {
    f"shuffled-{seed}": tiny["shuffled"]["checkpoints"]
    for seed in tiny["shuffled"]["training_seeds"]
}
# Files of every checkpoint of an arithmetic network, and of every such network.
grown = partial(expand, step=growth["checkpoints"], allow_missing=True)
of_seeds = partial(expand, seed=growth["training_seeds"])
MAPPED = str(tiny["training_seeds"][0])  # the network whose maps are drawn


TINY_PROBES = ("fixed", "rise")  # the two rules for the probe
# What is known of each network's checkpoints: states, and kernels under both rules for the probe.
CHECKPOINT_FILES = {
    network: {
        "states": [f"{DEVELOPMENT}/{network}/{step}.npz" for step in steps],
        "kernels": [
            f"{DEVELOPMENT}/{network}/{step}-{probe}.npz" for step in steps for probe in TINY_PROBES
        ],
    }
    for network, steps in DEVELOPED.items()
}


wildcard_constraints:
    network=r"(shuffled-)?\d+",
    step=r"\d+",


use rule step as development_arithmetic_train with:
    """Train a network on addition and division, leaving checkpoints."""
    output:
        f"{DEVELOPMENT}/arithmetic/{{seed}}.csv",
    params:
        **call(
            "development.arithmetic.train",
            settings=growing("training checkpoints", **SHARED),
            folder=f"{DEVELOPMENT}/arithmetic/checkpoints/{{seed}}",
        ),


use rule step as development_arithmetic_sample with:
    """Traces for kernel and learning coefficient, and the exact limit, at every checkpoint."""
    input:
        rules.development_arithmetic_train.output,
    output:
        traces=grown(f"{DEVELOPMENT}/arithmetic/{{seed}}/{{step}}.nc"),
        coefficient=grown(f"{DEVELOPMENT}/arithmetic/{{seed}}/{{step}}-coefficient.nc"),
        limits=grown(f"{DEVELOPMENT}/arithmetic/{{seed}}/{{step}}.npz"),
    benchmark:
        benchmark("development_arithmetic_sample/{seed}")
    params:
        **call(
            "development.arithmetic.sample",
            settings=growing(
                "checkpoints probe_inputs draws sampling_seed learning_coefficient", **SHARED
            ),
            folder=rules.development_arithmetic_train.params.folder,
        ),


use rule step as development_arithmetic_measure with:
    """Accuracy, separation, R and learning coefficient at every checkpoint; maps."""
    input:
        history=of_seeds(rules.development_arithmetic_train.output),
        traces=of_seeds(rules.development_arithmetic_sample.output.traces),
        coefficients=of_seeds(rules.development_arithmetic_sample.output.coefficient),
        limits=of_seeds(rules.development_arithmetic_sample.output.limits),
    output:
        table=f"{DEVELOPMENT}/arithmetic.csv",
        maps=f"{DEVELOPMENT}/arithmetic_maps.npz",
    params:
        **call("development.arithmetic.measure", settings=growing("neighbors", seed=SEED)),


use rule step as figure_development_arithmetic with:
    """Accuracy, separation, R and learning coefficient along training, and maps."""
    input:
        **outputs(rules.development_arithmetic_measure, "table maps"),
    output:
        **figure("development_arithmetic", "5 Development"),
    params:
        **call("development.figures.arithmetic"),


PREPARED = "image_size crop network training"
PROBED = "device calibration_per_class probe_per_class width sampling_seed"

if tiny["archive"] in ("download", "generated"):
    TINY_ARCHIVE = f"{DEVELOPMENT}/tiny-imagenet-200.zip"
else:
    TINY_ARCHIVE = tiny["archive"]

if tiny["archive"] == "download":

    use rule step as development_download with:
        """The official archive of Tiny ImageNet, 248 MB, its checksum verified."""
        output:
            protected(TINY_ARCHIVE),
        params:
            **call("development.sample.download", settings=classifier("url checksum")),


if tiny["archive"] == "generated":

    use rule step as development_generate with:
        """Random textures in the layout of the archive, in place of photographs."""
        output:
            TINY_ARCHIVE,
        params:
            **call(
                "development.sample.generate",
                settings=settings("development.tiny_imagenet.generate", seed=SEED),
            ),


use rule step as development_train with:
    """Train a network, or with permuted labels its control; checkpoints survive a kill."""
    input:
        archive=TINY_ARCHIVE or [],
    output:
        f"{DEVELOPMENT}/networks/{{network}}.csv",
    threads: tiny["threads"]
    resources:
        runtime=1440,
        gpu=gpus(tiny),
    params:
        **call(
            "development.sample.train",
            settings=classifier(
                f"{PREPARED} device train_per_class checkpoints shuffled save_every"
            ),
            seed=lambda wildcards: wildcards.network.removeprefix("shuffled-"),
            shuffled=lambda wildcards: wildcards.network.startswith("shuffled-"),
            folder=f"{DEVELOPMENT}/checkpoints/{{network}}",
        ),


use rule step as development_sample with:
    """Kernels under both rules for the probe, features and gradients at one checkpoint."""
    input:
        rules.development_train.output,
        archive=TINY_ARCHIVE or [],
    output:
        state=f"{DEVELOPMENT}/{{network}}/{{step}}.npz",
        kernels=[f"{DEVELOPMENT}/{{network}}/{{step}}-{probe}.npz" for probe in TINY_PROBES],
    benchmark:
        benchmark("development_sample/{network}-{step}")
    threads: tiny["threads"]
    resources:
        runtime=240,
        gpu=gpus(tiny),
    params:
        **call(
            "development.sample.sample",
            settings=classifier(f"{PREPARED} {PROBED} gamma rise pairs groups"),
            folder=rules.development_train.params.folder,
            journal=f"{DEVELOPMENT}/journals/{{network}}-{{step}}",
        ),


use rule step as development_measure with:
    """Agreement of a network's kernels with the hierarchy at every checkpoint, with errors, null."""
    input:
        unpack(lambda wildcards: CHECKPOINT_FILES[wildcards.network]),
        hierarchy=HIERARCHY,
    output:
        f"{DEVELOPMENT}/measured/{{network}}.npz",
    params:
        **call(
            "development.measure.measure",
            settings=trajectory("neighbors class_pairs permutations class_groups growth_draws"),
        ),


use rule step as development_maps with:
    """Maps of the first network along training."""
    input:
        **CHECKPOINT_FILES[MAPPED],
        hierarchy=HIERARCHY,
    output:
        f"{DEVELOPMENT}/maps.npz",
    params:
        **call("development.measure.maps", settings=trajectory("headline map_neighbors map_epochs")),


use rule step as development_analyze with:
    """When each depth of the hierarchy appears along training, and in what order."""
    input:
        curves=expand(f"{MEASURED}/measured/{{network}}.npz", network=DEVELOPED),
    output:
        metrics=f"{DEVELOPMENT}/metrics.csv",
        crossings=f"{DEVELOPMENT}/crossings.csv",
        order=f"{DEVELOPMENT}/order.csv",
    params:
        **call("development.analyze.analyze", settings=trajectory()),


use rule step as development_claims with:
    """What the trajectory says of the paper's claim."""
    input:
        **outputs(rules.development_analyze, "order crossings metrics"),
    output:
        f"{DEVELOPMENT}/claims.csv",
    params:
        **call("development.analyze.claims", settings=CLAIMED),


use rule step as figure_development with:
    """Lift by depth along training, crossings beside those of growth alone, two maps."""
    input:
        **outputs(rules.development_analyze, "metrics crossings"),
        arrays=f"{MEASURED}/maps.npz",
    output:
        **figure("development", "5 Development"),
    params:
        **call("development.figures.trajectory", settings=CLAIMED),


use rule step as figure_development_animation with:
    """The map along training as a GIF."""
    input:
        arrays=f"{MEASURED}/maps.npz",
    output:
        report(f"{FIGURES}/development_map.gif", category="5 Development"),
    params:
        **call("development.figures.animation"),
