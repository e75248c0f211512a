"""Experiment 5: the kernel along training, of an arithmetic network and of an image classifier.

The arithmetic network is always trained and sampled. Of the image classifier, what needs images is
computed if `development.tiny_imagenet.archive` is given, else its tracked copy is read: the traces
of most networks, and the curves measured from them of those in `tracked_curves`. It is left out
altogether unless `enabled`.
"""

DEVELOPMENT = f"{RESULTS}/development"
growth = config["development"]["arithmetic"]
tiny = config["development"]["tiny_imagenet"]
# What the arithmetic part has in common with experiment 1.
SHARED = {key: arithmetic[key] for key in ("network", "train_share", "probe", "score")}
# What is computed from images, or its tracked copy.
CHECKPOINTS = f"{REFERENCE}/development" if tiny["archive"] is None else DEVELOPMENT
# Steps of the checkpoints of each network.
DEVELOPED = {str(seed): tiny["checkpoints"] for seed in tiny["training_seeds"]}
DEVELOPED |= {
    f"shuffled-{seed}": tiny["shuffled"]["checkpoints"]
    for seed in tiny["shuffled"]["training_seeds"]
}
MAPPED = str(tiny["training_seeds"][0])  # the network whose maps are drawn


# What is known of each network's checkpoints: states, and traces under both rules for the probe.
CHECKPOINT_FILES = {
    network: {
        "states": [f"{CHECKPOINTS}/{network}/{step}.npz" for step in steps],
        "traces": [
            f"{CHECKPOINTS}/{network}/{step}-{probe}.nc"
            for step in steps
            for probe in ("fixed", "rise")
        ],
    }
    for network, steps in DEVELOPED.items()
}
# Where each network's curves are: measured by a rule, or their tracked copy.
CURVES = {
    network: (
        f"{REFERENCE}/development/{network}.npz"
        if tiny["archive"] is None and network in tiny["tracked_curves"]
        else f"{DEVELOPMENT}/measured/{network}.npz"
    )
    for network in DEVELOPED
}


wildcard_constraints:
    network=r"(shuffled-)?\d+",
    step=r"\d+",


rule development_arithmetic_train:
    """Train a network on addition and division, leaving checkpoints."""
    input:
        code=code("experiments.development.arithmetic.train"),
    output:
        f"{DEVELOPMENT}/arithmetic/{{seed}}.csv",
    log:
        f"{RESULTS}/logs/development_arithmetic_train/{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/development_arithmetic_train/{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        settings=settings("development.arithmetic", "training", "checkpoints", **SHARED),
        folder=f"{DEVELOPMENT}/arithmetic/checkpoints/{{seed}}",
    shell:
        "losskernel development-arithmetic train --settings {params.settings:q} "
        "--seed {wildcards.seed} --folder {params.folder} --output {output} 2> {log}"


rule development_arithmetic_sample:
    """Traces for kernel and learning coefficient, and the exact limit, at every checkpoint."""
    input:
        history=rules.development_arithmetic_train.output,
        code=code("experiments.development.arithmetic.sample"),
    output:
        traces=expand(
            f"{DEVELOPMENT}/arithmetic/{{{{seed}}}}/{{step}}.nc", step=growth["checkpoints"]
        ),
        coefficients=expand(
            f"{DEVELOPMENT}/arithmetic/{{{{seed}}}}/{{step}}-coefficient.nc",
            step=growth["checkpoints"],
        ),
        limits=expand(
            f"{DEVELOPMENT}/arithmetic/{{{{seed}}}}/{{step}}.npz", step=growth["checkpoints"]
        ),
    log:
        f"{RESULTS}/logs/development_arithmetic_sample/{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/development_arithmetic_sample/{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=20,
        gpu=gpus(growth["sampling"]),
    params:
        settings=settings(
            "development.arithmetic",
            "checkpoints",
            "probe_inputs",
            "sampling",
            "sampling_seed",
            "learning_coefficient",
            parameters=arithmetic["groups"][arithmetic["figure_group"]]["parameters"],
            **SHARED,
        ),
        folder=rules.development_arithmetic_train.params.folder,
    shell:
        "losskernel development-arithmetic sample --settings {params.settings:q} "
        "--seed {wildcards.seed} --folder {params.folder} --output {output.traces} "
        "--output-coefficient {output.coefficients} --output-limits {output.limits} 2> {log}"


rule development_arithmetic_measure:
    """Accuracy, separation, R and learning coefficient at every checkpoint; maps."""
    input:
        history=expand(rules.development_arithmetic_train.output, seed=growth["training_seeds"]),
        traces=expand(
            rules.development_arithmetic_sample.output.traces, seed=growth["training_seeds"]
        ),
        coefficients=expand(
            rules.development_arithmetic_sample.output.coefficients, seed=growth["training_seeds"]
        ),
        limits=expand(
            rules.development_arithmetic_sample.output.limits, seed=growth["training_seeds"]
        ),
        code=code("experiments.development.arithmetic.measure"),
    output:
        table=f"{DEVELOPMENT}/arithmetic.csv",
        maps=f"{DEVELOPMENT}/arithmetic_maps.npz",
    log:
        f"{RESULTS}/logs/development_arithmetic_measure.log",
    benchmark:
        f"{RESULTS}/benchmarks/development_arithmetic_measure.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        settings=settings("development.arithmetic", "neighbors", seed=config["seed"], **SHARED),
    shell:
        "losskernel development-arithmetic measure --settings {params.settings:q} "
        "--history {input.history} --traces {input.traces} --coefficients {input.coefficients} "
        "--limits {input.limits} --output {output.table} --output-maps {output.maps} 2> {log}"


rule figure_development_arithmetic:
    """Accuracy, separation, R and learning coefficient along training, and maps."""
    input:
        table=rules.development_arithmetic_measure.output.table,
        maps=rules.development_arithmetic_measure.output.maps,
        code=code("experiments.development.figures.arithmetic"),
    output:
        pdf=report(f"{FIGURES}/development_arithmetic.pdf", category="5 Development"),
        png=f"{FIGURES}/development_arithmetic.png",
    log:
        f"{RESULTS}/logs/figure_development_arithmetic.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure_development_arithmetic.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    shell:
        "losskernel figure-development arithmetic --table {input.table} --maps {input.maps} "
        "--output {output.pdf} --output-png {output.png} 2> {log}"


PREPARED = ("image_size", "crop", "network", "training")

if tiny["archive"] in ("download", "generated"):
    TINY_ARCHIVE = f"{DEVELOPMENT}/tiny-imagenet-200.zip"
else:
    TINY_ARCHIVE = tiny["archive"]

if tiny["archive"] == "download":

    rule development_download:
        """The official archive of Tiny ImageNet, 248 MB, its checksum verified."""
        input:
            code=code("experiments.development.sample.download"),
        output:
            protected(TINY_ARCHIVE),
        log:
            f"{RESULTS}/logs/development_download.log",
        benchmark:
            f"{RESULTS}/benchmarks/development_download.tsv"
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=1000,
            runtime=60,
        params:
            settings=settings("development.tiny_imagenet", "url", "checksum"),
        shell:
            "losskernel development download --settings {params.settings:q} --output {output} "
            "2> {log}"


if tiny["archive"] == "generated":

    rule development_generate:
        """Random textures in the layout of the archive, in place of photographs."""
        input:
            code=code("experiments.development.sample.generate"),
        output:
            TINY_ARCHIVE,
        log:
            f"{RESULTS}/logs/development_generate.log",
        benchmark:
            f"{RESULTS}/benchmarks/development_generate.tsv"
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=1000,
            runtime=5,
        params:
            settings=settings("development.tiny_imagenet.generate", seed=config["seed"]),
        shell:
            "losskernel development generate --settings {params.settings:q} --output {output} "
            "2> {log}"


rule development_train:
    """Train a network, or with permuted labels its control; checkpoints survive a kill."""
    input:
        archive=TINY_ARCHIVE or [],
        code=code("experiments.development.sample.train"),
    output:
        f"{DEVELOPMENT}/networks/{{network}}.csv",
    log:
        f"{RESULTS}/logs/development_train/{{network}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/development_train/{{network}}.tsv"
    conda:
        ENVIRONMENT
    threads: tiny["threads"]
    resources:
        mem_mb=4000,
        runtime=1440,
        gpu=gpus(tiny),
    params:
        settings=settings(
            "development.tiny_imagenet",
            *PREPARED,
            "device",
            "train_per_class",
            "checkpoints",
            "shuffled",
            "save_every",
        ),
        folder=f"{DEVELOPMENT}/checkpoints/{{network}}",
        seed=lambda wildcards: wildcards.network.removeprefix("shuffled-"),
        shuffled=lambda wildcards: (
            "--shuffled" if wildcards.network.startswith("shuffled") else ""
        ),
    shell:
        "losskernel development train --settings {params.settings:q} --archive {input.archive} "
        "--seed {params.seed} {params.shuffled} --folder {params.folder} --output {output} "
        "2> {log}"


rule development_sample:
    """Traces under both rules for the probe, features and gradients at one checkpoint."""
    input:
        archive=TINY_ARCHIVE or [],
        history=rules.development_train.output,
        code=code("experiments.development.sample.sample"),
    output:
        state=f"{DEVELOPMENT}/{{network}}/{{step}}.npz",
        fixed=f"{DEVELOPMENT}/{{network}}/{{step}}-fixed.nc",
        rise=f"{DEVELOPMENT}/{{network}}/{{step}}-rise.nc",
    log:
        f"{RESULTS}/logs/development_sample/{{network}}-{{step}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/development_sample/{{network}}-{{step}}.tsv"
    conda:
        ENVIRONMENT
    threads: tiny["threads"]
    resources:
        mem_mb=4000,
        runtime=240,
        gpu=gpus(tiny["sampling"]),
    params:
        settings=settings(
            "development.tiny_imagenet",
            *PREPARED,
            "gradient_per_class",
            "probe_per_class",
            "calibration_batches",
            "probe",
            "pilot",
            "sampling",
            "sampling_seed",
        ),
        folder=rules.development_train.params.folder,
        journal=f"{DEVELOPMENT}/journals/{{network}}-{{step}}",
    shell:
        "losskernel development sample --settings {params.settings:q} --archive {input.archive} "
        "--folder {params.folder} --network {wildcards.network} --step {wildcards.step} "
        "--journal {params.journal} --output {output.state} "
        "--output-traces {output.fixed} {output.rise} 2> {log}"


rule development_measure:
    """Agreement of a network's kernels with the hierarchy at every checkpoint, with errors, null."""
    input:
        unpack(lambda wildcards: CHECKPOINT_FILES[wildcards.network]),
        hierarchy=f"{REFERENCE}/imagenet/hierarchy.json",
        code=code("experiments.development.measure.measure"),
    output:
        f"{DEVELOPMENT}/measured/{{network}}.npz",
    log:
        f"{RESULTS}/logs/development_measure/{{network}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/development_measure/{{network}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        settings=settings(
            "development.tiny_imagenet.analysis",
            "neighbors",
            "class_pairs",
            "permutations",
            "jackknife_blocks",
            "class_groups",
            seed=config["seed"],
        ),
    shell:
        "losskernel development-measure measure --settings {params.settings:q} "
        "--states {input.states} --traces {input.traces} --hierarchy {input.hierarchy} "
        "--output {output} 2> {log}"


rule development_maps:
    """Maps of the first network along training, and how similar its checkpoints are."""
    input:
        **CHECKPOINT_FILES[MAPPED],
        hierarchy=f"{REFERENCE}/imagenet/hierarchy.json",
        code=code("experiments.development.measure.maps"),
    output:
        f"{DEVELOPMENT}/maps.npz",
    log:
        f"{RESULTS}/logs/development_maps.log",
    benchmark:
        f"{RESULTS}/benchmarks/development_maps.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        settings=settings(
            "development.tiny_imagenet.analysis",
            "headline",
            "map_neighbors",
            "map_epochs",
            seed=config["seed"],
        ),
    shell:
        "losskernel development-measure maps --settings {params.settings:q} "
        "--states {input.states} --traces {input.traces} --hierarchy {input.hierarchy} "
        "--output {output} 2> {log}"


rule development_analyze:
    """When each depth of the hierarchy appears along training, and in what order."""
    input:
        curves=CURVES.values(),
        code=code("experiments.development.analyze.analyze"),
    output:
        metrics=f"{DEVELOPMENT}/metrics.csv",
        crossings=f"{DEVELOPMENT}/crossings.csv",
        order=f"{DEVELOPMENT}/order.csv",
    log:
        f"{RESULTS}/logs/development_analyze.log",
    benchmark:
        f"{RESULTS}/benchmarks/development_analyze.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=settings("development.tiny_imagenet.analysis", seed=config["seed"]),
    shell:
        "losskernel development-analysis analyze --settings {params.settings:q} "
        "--curves {input.curves} --output {output.metrics} --output-crossings {output.crossings} "
        "--output-order {output.order} 2> {log}"


rule development_claims:
    """What the trajectory says of the paper's claim."""
    input:
        order=rules.development_analyze.output.order,
        crossings=rules.development_analyze.output.crossings,
        metrics=rules.development_analyze.output.metrics,
        code=code("experiments.development.analyze.claims"),
    output:
        f"{DEVELOPMENT}/claims.csv",
    log:
        f"{RESULTS}/logs/development_claims.log",
    benchmark:
        f"{RESULTS}/benchmarks/development_claims.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        settings=settings("development.tiny_imagenet.analysis", "headline"),
    shell:
        "losskernel development-analysis claims --settings {params.settings:q} "
        "--order {input.order} --crossings {input.crossings} --metrics {input.metrics} "
        "--output {output} 2> {log}"


rule figure_development:
    """Maps in a row, lift by depth along training, order of the depths, CKA of checkpoints."""
    input:
        metrics=rules.development_analyze.output.metrics,
        crossings=rules.development_analyze.output.crossings,
        order=rules.development_analyze.output.order,
        arrays=rules.development_maps.output,
        code=code("experiments.development.figures.trajectory"),
    output:
        pdf=report(f"{FIGURES}/development.pdf", category="5 Development"),
        png=f"{FIGURES}/development.png",
    log:
        f"{RESULTS}/logs/figure_development.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure_development.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    shell:
        "losskernel figure-development trajectory --metrics {input.metrics} "
        "--crossings {input.crossings} --order {input.order} --arrays {input.arrays} "
        "--output {output.pdf} --output-png {output.png} 2> {log}"


rule figure_development_animation:
    """The map along training as a GIF."""
    input:
        arrays=rules.development_maps.output,
        code=code("experiments.development.figures.animation"),
    output:
        report(f"{FIGURES}/development_map.gif", category="5 Development"),
    log:
        f"{RESULTS}/logs/figure_development_animation.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure_development_animation.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    shell:
        "losskernel figure-development animation --arrays {input.arrays} --output {output} "
        "2> {log}"
