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


def control_files(control, name):
    """Where an intermediate of a control comes from: computed if its images are there."""
    generated = imagenet["image_folder"] == "generated"
    computed = IMAGES if control == "untrained" else ARCHIVE or generated
    return f"{CONTROLS if computed else f'{REFERENCE}/imagenet/controls'}/{control}/{name}"


def control_settings(wildcards):
    """Settings of the model and the images of a control."""
    return settings(
        "imagenet",
        *LOADING,
        sampling={},
        seed=config["seed"],
        **CONTROL[wildcards.control],
    )


wildcard_constraints:
    control="|".join(CONTROL),


if ARCHIVE:

    rule imagenet_tiny_images:
        """Some images of each class of Tiny ImageNet, in class folders."""
        input:
            archive=ARCHIVE,
            code=code("experiments.controls.tiny_images"),
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
        code=code("experiments.imagenet.gradients"),
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
        settings=control_settings,
    shell:
        "losskernel imagenet gradients --settings {params.settings:q} --output {output} 2> {log}"


rule imagenet_control_limit:
    """Gram matrix of a control's gradients, its loss kernel in the limit of high localization."""
    input:
        gradients=rules.imagenet_control_gradients.output,
        code=code("experiments.controls.limit"),
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
        code=code("experiments.imagenet.features"),
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
        settings=control_settings,
    shell:
        "losskernel imagenet features --settings {params.settings:q} --output {output} 2> {log}"


if imagenet["controls"]:
    # The network and the images of the experiment itself stand beside the controls.
    ANALYZED = [*(["trained"] if imagenet["limit"] else []), *imagenet["controls"]]

    def analyzed(name):
        """One intermediate of each analyzed control."""
        return [
            f"{INTERMEDIATE}/{name}" if control == "trained" else control_files(control, name)
            for control in ANALYZED
        ]

    rule imagenet_controls:
        """How semantic each control's neighbors are, with pairs of equal label and without."""
        input:
            limits=analyzed("limit.npz"),
            features=analyzed("features.npz"),
            hierarchy=KERNELS["hierarchy"],
            code=code("experiments.controls.measure"),
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
            settings=analysis("neighbors", "lift_neighbors", "permutations"),
        shell:
            "losskernel controls measure --names {params.names} --limits {input.limits} "
            "--features {input.features} --hierarchy {input.hierarchy} "
            "--settings {params.settings:q} --output {output} 2> {log}"

    rule figure_imagenet_controls:
        """Share of neighbors of equal label, and lift with and without such pairs, by control."""
        input:
            controls=rules.imagenet_controls.output,
            code=code("figures.imagenet.controls"),
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
