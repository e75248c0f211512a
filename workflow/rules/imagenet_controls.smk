"""Controls of experiment 2, through the exact limit: an untrained network, several images a class.

Each control is computed where its images are there, else its tracked copy is read. Only the controls
that `imagenet.controls` lists are analyzed.
"""

CONTROLS = f"{IMAGENET}/controls"
ARCHIVE = imagenet["tiny_imagenet"]["archive"]
# Generated images come several a class, as Tiny ImageNet's do.
TINY = f"{CONTROLS}/tiny_images" if ARCHIVE else IMAGES
CONTROL = {
    "untrained": {"image_folder": IMAGES, "weights": "random"},
    "tiny": {"image_folder": TINY, "per_class": None, "max_inputs": None},
    "tiny_untrained": {
        "image_folder": TINY,
        "per_class": None,
        "max_inputs": None,
        "weights": "random",
    },
}


# Where the intermediates of a control come from: computed if its images are there.
COMPUTED = {name: ARCHIVE or imagenet["image_folder"] == "generated" for name in CONTROL}
COMPUTED["untrained"] = IMAGES
CONTROL_FOLDER = {
    name: f"{CONTROLS if COMPUTED[name] else f'{REFERENCE}/imagenet/controls'}/{name}"
    for name in CONTROL
}
CONTROL_SETTINGS = {
    name: settings(
        "imagenet", *LOADING, **{"sampling": {}, "seed": config["seed"], **CONTROL[name]}
    )
    for name in CONTROL
}


wildcard_constraints:
    control="|".join(CONTROL),


if ARCHIVE:

    rule imagenet_tiny_images:
        """Some images of each class of Tiny ImageNet, in class folders."""
        input:
            archive=ARCHIVE,
            code=code("experiments.imagenet.controls.tiny_images"),
        output:
            directory(TINY),
        log:
            f"{RESULTS}/logs/imagenet_tiny_images.log",
        benchmark:
            f"{RESULTS}/benchmarks/imagenet_tiny_images.tsv"
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=1000,
            runtime=10,
        params:
            per_class=imagenet["tiny_imagenet"]["per_class"],
        shell:
            "losskernel controls tiny-images --archive {input.archive} "
            "--per-class {params.per_class} --output {output} 2> {log}"


rule imagenet_control_gradients:
    """Loss gradient of every image of a control; resumable."""
    input:
        images=lambda wildcards: CONTROL[wildcards.control]["image_folder"] or [],
        code=code("experiments.imagenet.sample.gradients"),
    output:
        temp(directory(f"{CONTROLS}/{{control}}/gradients")),
    log:
        f"{RESULTS}/logs/imagenet_control_gradients/{{control}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/imagenet_control_gradients/{{control}}.tsv"
    conda:
        ENVIRONMENT
    threads: imagenet["threads"]
    resources:
        mem_mb=MODEL_MEMORY,
        runtime=240,
    params:
        settings=lambda wildcards: CONTROL_SETTINGS[wildcards.control],
    shell:
        "losskernel imagenet gradients --settings {params.settings:q} --output {output} 2> {log}"


rule imagenet_control_limit:
    """Gram matrix of a control's gradients, its loss kernel in the limit of high localization."""
    input:
        gradients=rules.imagenet_control_gradients.output,
        code=code("experiments.imagenet.controls.limit"),
    output:
        f"{CONTROLS}/{{control}}/limit.npz",
    log:
        f"{RESULTS}/logs/imagenet_control_limit/{{control}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/imagenet_control_limit/{{control}}.tsv"
    conda:
        ENVIRONMENT
    threads: imagenet["threads"]
    resources:
        mem_mb=3000,
        runtime=120,
    shell:
        "losskernel controls limit --gradients {input.gradients} --output {output} 2> {log}"


rule imagenet_control_features:
    """Penultimate features of a control."""
    input:
        images=lambda wildcards: CONTROL[wildcards.control]["image_folder"] or [],
        code=code("experiments.imagenet.sample.features"),
    output:
        f"{CONTROLS}/{{control}}/features.npz",
    log:
        f"{RESULTS}/logs/imagenet_control_features/{{control}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/imagenet_control_features/{{control}}.tsv"
    conda:
        ENVIRONMENT
    threads: imagenet["threads"]
    resources:
        mem_mb=MODEL_MEMORY,
        runtime=60,
    params:
        settings=lambda wildcards: CONTROL_SETTINGS[wildcards.control],
    shell:
        "losskernel imagenet features --settings {params.settings:q} --output {output} 2> {log}"


if imagenet["controls"]:
    # The network and the images of the experiment itself stand beside the controls.
    ANALYZED = [*(["trained"] if imagenet["limit"] else []), *imagenet["controls"]]

    FOLDERS = [INTERMEDIATE if name == "trained" else CONTROL_FOLDER[name] for name in ANALYZED]

    rule imagenet_controls:
        """How semantic each control's neighbors are, with pairs of equal label and without."""
        input:
            limits=expand("{folder}/limit.npz", folder=FOLDERS),
            features=expand("{folder}/features.npz", folder=FOLDERS),
            hierarchy=KERNELS["hierarchy"],
            code=code("experiments.imagenet.controls.measure"),
        output:
            f"{CONTROLS}/controls.csv",
        log:
            f"{RESULTS}/logs/imagenet_controls.log",
        benchmark:
            f"{RESULTS}/benchmarks/imagenet_controls.tsv"
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=3000,
            runtime=30,
        params:
            names=ANALYZED,
            settings=settings_in_order(
                "imagenet.analysis",
                "neighbors",
                "lift_neighbors",
                "permutations",
                seed=config["seed"],
            ),
        shell:
            "losskernel controls measure --names {params.names} --limits {input.limits} "
            "--features {input.features} --hierarchy {input.hierarchy} "
            "--settings {params.settings:q} --output {output} 2> {log}"

    rule figure_imagenet_controls:
        """Share of neighbors of equal label, and lift with and without such pairs, by control."""
        input:
            controls=rules.imagenet_controls.output,
            code=code("experiments.imagenet.figures.controls"),
        output:
            pdf=report(f"{FIGURES}/imagenet_controls.pdf", category="2 ImageNet"),
            png=f"{FIGURES}/imagenet_controls.png",
        log:
            f"{RESULTS}/logs/figure_imagenet_controls.log",
        benchmark:
            f"{RESULTS}/benchmarks/figure_imagenet_controls.tsv"
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=1000,
            runtime=5,
        params:
            depth=imagenet["analysis"]["claim_depth"],
        shell:
            "losskernel figure-imagenet controls --controls {input.controls} "
            "--depth {params.depth} --output {output.pdf} --output-png {output.png} 2> {log}"
