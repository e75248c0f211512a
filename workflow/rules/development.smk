"""Experiment 5: the kernel along training, of an arithmetic network and of an image classifier.

The arithmetic network is always trained and sampled. The image classifier is if
`development.tiny_imagenet.archive` is given; else the tracked curves and maps of its networks are
read. It is left out altogether unless `enabled`.
"""

DEVELOPMENT = f"{RESULTS}/development"
growth = config["development"]["arithmetic"]
tiny = config["development"]["tiny_imagenet"]
classifier = partial(settings, "development.tiny_imagenet")
trajectory = partial(settings, "development.tiny_imagenet.analysis", seed=SEED)
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
MAPPED = str(tiny["training_seeds"][0])  # the network whose maps are drawn


TINY_PROBES = ("fixed", "rise")  # the two rules for the probe
# What is known of each network's checkpoints: states, and traces under both rules for the probe.
CHECKPOINT_FILES = {
    network: {
        "states": [f"{DEVELOPMENT}/{network}/{step}.npz" for step in steps],
        "traces": [
            f"{DEVELOPMENT}/{network}/{step}-{probe}.nc" for step in steps for probe in TINY_PROBES
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
    log:
        log("development_arithmetic_train/{seed}"),
    params:
        **call(
            "development.arithmetic.train",
            settings=settings("development.arithmetic", "training checkpoints", **SHARED),
            folder=f"{DEVELOPMENT}/arithmetic/checkpoints/{{seed}}",
        ),


use rule step as development_arithmetic_sample with:
    """Traces for kernel and learning coefficient, and the exact limit, at every checkpoint."""
    input:
        rules.development_arithmetic_train.output,
    output:
        traces=expand(
            f"{DEVELOPMENT}/arithmetic/{{{{seed}}}}/{{step}}.nc", step=growth["checkpoints"]
        ),
        coefficient=expand(
            f"{DEVELOPMENT}/arithmetic/{{{{seed}}}}/{{step}}-coefficient.nc",
            step=growth["checkpoints"],
        ),
        limits=expand(
            f"{DEVELOPMENT}/arithmetic/{{{{seed}}}}/{{step}}.npz", step=growth["checkpoints"]
        ),
    log:
        log("development_arithmetic_sample/{seed}"),
    benchmark:
        benchmark("development_arithmetic_sample/{seed}")
    params:
        **call(
            "development.arithmetic.sample",
            settings=settings(
                "development.arithmetic",
                "checkpoints probe_inputs draws sampling_seed learning_coefficient",
                **SHARED,
            ),
            folder=rules.development_arithmetic_train.params.folder,
        ),


use rule step as development_arithmetic_measure with:
    """Accuracy, separation, R and learning coefficient at every checkpoint; maps."""
    input:
        history=expand(rules.development_arithmetic_train.output, seed=growth["training_seeds"]),
        traces=expand(
            rules.development_arithmetic_sample.output.traces, seed=growth["training_seeds"]
        ),
        coefficients=expand(
            rules.development_arithmetic_sample.output.coefficient, seed=growth["training_seeds"]
        ),
        limits=expand(
            rules.development_arithmetic_sample.output.limits, seed=growth["training_seeds"]
        ),
    output:
        table=f"{DEVELOPMENT}/arithmetic.csv",
        maps=f"{DEVELOPMENT}/arithmetic_maps.npz",
    log:
        log("development_arithmetic_measure"),
    params:
        **call(
            "development.arithmetic.measure",
            settings=settings("development.arithmetic", "neighbors", seed=SEED),
        ),


use rule step as figure_development_arithmetic with:
    """Accuracy, separation, R and learning coefficient along training, and maps."""
    input:
        **outputs(rules.development_arithmetic_measure, "table maps"),
    output:
        **figure("development_arithmetic", "5 Development"),
    log:
        log("figure_development_arithmetic"),
    params:
        **call("development.figures.arithmetic"),


PREPARED = "image_size crop network training"

if tiny["archive"] in ("download", "generated"):
    TINY_ARCHIVE = f"{DEVELOPMENT}/tiny-imagenet-200.zip"
else:
    TINY_ARCHIVE = tiny["archive"]

if tiny["archive"] == "download":

    use rule step as development_download with:
        """The official archive of Tiny ImageNet, 248 MB, its checksum verified."""
        output:
            protected(TINY_ARCHIVE),
        log:
            log("development_download"),
        params:
            **call("development.sample.download", settings=classifier("url checksum")),


if tiny["archive"] == "generated":

    use rule step as development_generate with:
        """Random textures in the layout of the archive, in place of photographs."""
        output:
            TINY_ARCHIVE,
        log:
            log("development_generate"),
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
    log:
        log("development_train/{network}"),
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
    """Traces under both rules for the probe, features and gradients at one checkpoint."""
    input:
        rules.development_train.output,
        archive=TINY_ARCHIVE or [],
    output:
        state=f"{DEVELOPMENT}/{{network}}/{{step}}.npz",
        traces=[f"{DEVELOPMENT}/{{network}}/{{step}}-{probe}.nc" for probe in TINY_PROBES],
    log:
        log("development_sample/{network}-{step}"),
    benchmark:
        benchmark("development_sample/{network}-{step}")
    threads: tiny["threads"]
    resources:
        runtime=240,
        gpu=gpus(tiny["sampling"]),
    params:
        **call(
            "development.sample.sample",
            settings=classifier(
                f"{PREPARED} gradient_per_class probe_per_class calibration_batches probe pilot sampling sampling_seed"
            ),
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
    log:
        log("development_measure/{network}"),
    params:
        **call(
            "development.measure.measure",
            settings=trajectory(
                "neighbors class_pairs permutations jackknife_blocks class_groups"
            ),
        ),


use rule step as development_maps with:
    """Maps of the first network along training, and how similar its checkpoints are."""
    input:
        **CHECKPOINT_FILES[MAPPED],
        hierarchy=HIERARCHY,
    output:
        f"{DEVELOPMENT}/maps.npz",
    log:
        log("development_maps"),
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
    log:
        log("development_analyze"),
    params:
        **call("development.analyze.analyze", settings=trajectory()),


use rule step as development_claims with:
    """What the trajectory says of the paper's claim."""
    input:
        **outputs(rules.development_analyze, "order crossings metrics"),
    output:
        f"{DEVELOPMENT}/claims.csv",
    log:
        log("development_claims"),
    params:
        **call(
            "development.analyze.claims",
            settings=settings("development.tiny_imagenet.analysis", "headline"),
        ),


use rule step as figure_development with:
    """Maps in a row, lift by depth along training, order of the depths, CKA of checkpoints."""
    input:
        **outputs(rules.development_analyze, "metrics crossings order"),
        arrays=f"{MEASURED}/maps.npz",
    output:
        **figure("development", "5 Development"),
    log:
        log("figure_development"),
    params:
        **call("development.figures.trajectory"),


use rule step as figure_development_animation with:
    """The map along training as a GIF."""
    input:
        arrays=f"{MEASURED}/maps.npz",
    output:
        report(f"{FIGURES}/development_map.gif", category="5 Development"),
    log:
        log("figure_development_animation"),
    params:
        **call("development.figures.animation"),
