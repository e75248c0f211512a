"""Experiment 4: find wrong labels by self-covariance, against what is in use.

On digits always. On photographs where `mislabel.imagenet.include` and `mislabel.tiny_imagenet.include`
say so: from tracked intermediates, or computed where the config names images and asks for it.
"""

MISLABEL = f"{RESULTS}/mislabel"
mislabel = config["mislabel"]
PHOTOGRAPHS = [name for name in ("imagenet", "tiny_imagenet") if mislabel[name]["include"]]
MISLABEL_FIGURES = ["mislabel_detection", *(f"mislabel_{name}" for name in PHOTOGRAPHS)]
TINY_IMAGENET = mislabel["tiny_imagenet"]["archive"]
PER_CLASS = {key: mislabel["tiny_imagenet"][key] for key in ("train_per_class", "test_per_class")}
# What is computed from photographs, or its tracked copies.
CORRUPTED = f"{REFERENCE if IMAGES is None else RESULTS}/mislabel/imagenet.nc"
FEATURES = f"{RESULTS if TINY_IMAGENET else REFERENCE}/mislabel/tiny_imagenet_features.npz"
HEADS = f"{RESULTS if mislabel['tiny_imagenet']['run'] else REFERENCE}/mislabel/tiny_imagenet"


rule mislabel_detect:
    """Labels flipped before training: every method on the same networks, all shares and draws."""
    input:
        code=code("experiments.mislabel.memorized.on_digits"),
    output:
        rows=f"{MISLABEL}/detection.csv",
        summary=f"{MISLABEL}/detection_summary.csv",
        scores=f"{MISLABEL}/detection.npz",
    log:
        f"{RESULTS}/logs/mislabel_detect.log",
    benchmark:
        f"{RESULTS}/benchmarks/mislabel_detect.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        settings=settings(
            "mislabel",
            "inputs",
            "hidden_widths",
            "training",
            "shares",
            "draws",
            "folds",
            "neighbors",
            "pilot",
            "sampling",
        ),
    shell:
        "losskernel mislabel-memorized on-digits --settings {params.settings:q} --output {output.rows} "
        "--output-summary {output.summary} --output-scores {output.scores} 2> {log}"


rule mislabel_probe_time:
    """Clean training, labels corrupted where the losses are recorded, as in the paper."""
    input:
        code=code("experiments.mislabel.probe_time.on_digits"),
    output:
        rows=f"{MISLABEL}/probe_time.csv",
        summary=f"{MISLABEL}/probe_time_summary.csv",
        scores=f"{MISLABEL}/probe_time.npz",
    log:
        f"{RESULTS}/logs/mislabel_probe_time.log",
    benchmark:
        f"{RESULTS}/benchmarks/mislabel_probe_time.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        settings=settings(
            "mislabel",
            "inputs",
            "hidden_widths",
            "training",
            "shares",
            "draws",
            "neighbors",
            "pilot",
            "sampling",
        ),
    shell:
        "losskernel mislabel-probe-time on-digits --settings {params.settings:q} --output {output.rows} "
        "--output-summary {output.summary} --output-scores {output.scores} 2> {log}"


rule mislabel_copies:
    """Self-covariance against the number of copies of an input in the training set."""
    input:
        code=code("experiments.mislabel.memorized.copies"),
    output:
        rows=f"{MISLABEL}/copies.csv",
        summary=f"{MISLABEL}/copies_summary.csv",
    log:
        f"{RESULTS}/logs/mislabel_copies.log",
    benchmark:
        f"{RESULTS}/benchmarks/mislabel_copies.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        settings=settings(
            "mislabel", "inputs", "hidden_widths", "training", "draws", "sampling", "copies"
        ),
    shell:
        "losskernel mislabel-memorized copies --settings {params.settings:q} --output {output.rows} "
        "--output-summary {output.summary} 2> {log}"


rule mislabel_imagenet_sample:
    """Losses of photographs under their given and some wrong labels, from one forward pass each."""
    input:
        images=IMAGES or [],
        code=code("experiments.mislabel.probe_time.sample"),
    output:
        f"{MISLABEL}/imagenet.nc",
    log:
        f"{RESULTS}/logs/mislabel_imagenet_sample.log",
    benchmark:
        f"{RESULTS}/benchmarks/mislabel_imagenet_sample.tsv"
    conda:
        ENVIRONMENT
    threads: imagenet["threads"]
    resources:
        mem_mb=MODEL_MEMORY,
        runtime=1440,
        gpu=gpus(mislabel["imagenet"]["sampling"]),
    params:
        settings=settings(
            "imagenet",
            *LOADING,
            image_folder=IMAGES,
            seed=config["seed"],
            **{key: mislabel["imagenet"][key] for key in ("wrong_labels", "probe", "sampling")},
        ),
        journal=f"{MISLABEL}/imagenet_journal",
    shell:
        "losskernel mislabel-probe-time sample --settings {params.settings:q} "
        "--journal {params.journal} --output {output} 2> {log}"


rule mislabel_imagenet:
    """Shares and draws of corrupted labels of photographs, and how self-covariance finds them."""
    input:
        trace=CORRUPTED,
        code=code("experiments.mislabel.probe_time.on_images"),
    output:
        rows=f"{MISLABEL}/imagenet.csv",
        summary=f"{MISLABEL}/imagenet_summary.csv",
        scores=f"{MISLABEL}/imagenet_scores.npz",
    log:
        f"{RESULTS}/logs/mislabel_imagenet.log",
    benchmark:
        f"{RESULTS}/benchmarks/mislabel_imagenet.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        settings=json.dumps(mislabel["imagenet"]["analysis"], sort_keys=True),
    shell:
        "losskernel mislabel-probe-time on-images --settings {params.settings:q} "
        "--trace {input.trace} --output {output.rows} --output-summary {output.summary} "
        "--output-scores {output.scores} 2> {log}"


if TINY_IMAGENET == "generated":
    # Stand-ins for photographs, for a run without data: an archive of random textures.
    TINY_IMAGENET = f"{MISLABEL}/generated.zip"

    rule mislabel_generate:
        """Random textures in the layout of Tiny ImageNet, in place of photographs."""
        input:
            code=code("experiments.mislabel.memorized.generate"),
        output:
            TINY_IMAGENET,
        log:
            f"{RESULTS}/logs/mislabel_generate.log",
        benchmark:
            f"{RESULTS}/benchmarks/mislabel_generate.tsv"
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=1000,
            runtime=5,
        params:
            settings=json.dumps(
                {**mislabel["tiny_imagenet"]["generate"], **PER_CLASS, "seed": config["seed"]}
            ),
        shell:
            "losskernel mislabel-memorized generate --settings {params.settings:q} "
            "--output {output} 2> {log}"


rule mislabel_features:
    """Penultimate features of Tiny ImageNet's images, what the heads are trained on."""
    input:
        archive=TINY_IMAGENET or [],
        code=code("experiments.mislabel.memorized.features"),
    output:
        f"{MISLABEL}/tiny_imagenet_features.npz",
    log:
        f"{RESULTS}/logs/mislabel_features.log",
    benchmark:
        f"{RESULTS}/benchmarks/mislabel_features.tsv"
    conda:
        ENVIRONMENT
    threads: imagenet["threads"]
    resources:
        mem_mb=MODEL_MEMORY,
        runtime=60,
    params:
        settings=settings(
            "imagenet",
            "model",
            "weights",
            "image_size",
            archive=TINY_IMAGENET,
            **PER_CLASS,
            seed=config["seed"],
        ),
    shell:
        "losskernel mislabel-memorized features --settings {params.settings:q} "
        "--output {output} 2> {log}"


rule mislabel_heads:
    """Labels of photographs flipped before a head is trained on features: every method."""
    input:
        features=FEATURES,
        code=code("experiments.mislabel.memorized.on_features"),
    output:
        rows=f"{MISLABEL}/tiny_imagenet.csv",
        summary=f"{MISLABEL}/tiny_imagenet_summary.csv",
        scores=f"{MISLABEL}/tiny_imagenet.npz",
    log:
        f"{RESULTS}/logs/mislabel_heads.log",
    benchmark:
        f"{RESULTS}/benchmarks/mislabel_heads.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        settings=json.dumps(mislabel["tiny_imagenet"]["heads"], sort_keys=True),
    shell:
        "losskernel mislabel-memorized on-features --settings {params.settings:q} "
        "--features {input.features} --output {output.rows} --output-summary {output.summary} "
        "--output-scores {output.scores} 2> {log}"


rule mislabel_claims:
    """What was measured of the paper's numbers on wrong labels, and of the memorized ones."""
    input:
        probe_time=rules.mislabel_probe_time.output.summary,
        digits=rules.mislabel_detect.output.summary,
        imagenet=rules.mislabel_imagenet.output.summary if "imagenet" in PHOTOGRAPHS else [],
        tiny_imagenet=f"{HEADS}_summary.csv" if "tiny_imagenet" in PHOTOGRAPHS else [],
        code=code("experiments.mislabel.claims.claims"),
    output:
        f"{MISLABEL}/claims.csv",
    log:
        f"{RESULTS}/logs/mislabel_claims.log",
    benchmark:
        f"{RESULTS}/benchmarks/mislabel_claims.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        photographs=lambda wildcards, input: " ".join(
            f"--{name.replace('_', '-')} {input.get(name)}" for name in PHOTOGRAPHS
        ),
    shell:
        "losskernel mislabel-claims claims "
        "--probe-time {input.probe_time} --digits {input.digits} {params.photographs} "
        "--output {output} 2> {log}"


rule figure_mislabel_detection:
    """AUC, precision and cost by method; self-covariances of right and wrong labels; copies."""
    input:
        summary=rules.mislabel_detect.output.summary,
        scores=rules.mislabel_detect.output.scores,
        probe_time=rules.mislabel_probe_time.output.summary,
        probe_time_scores=rules.mislabel_probe_time.output.scores,
        copies=rules.mislabel_copies.output.summary,
        code=code("experiments.mislabel.figures.detection"),
    output:
        pdf=report(f"{FIGURES}/mislabel_detection.pdf", category="4 Wrong labels"),
        png=f"{FIGURES}/mislabel_detection.png",
    log:
        f"{RESULTS}/logs/figure_mislabel_detection.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure_mislabel_detection.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    shell:
        "losskernel figure-mislabel detection --summary {input.summary} --scores {input.scores} "
        "--probe-time {input.probe_time} --probe-time-scores {input.probe_time_scores} "
        "--copies {input.copies} --output {output.pdf} --output-png {output.png} 2> {log}"


rule figure_mislabel_imagenet:
    """Photographs with labels wrong at probe time: self-covariances, AUC, ratio, neighbors."""
    input:
        summary=rules.mislabel_imagenet.output.summary,
        scores=rules.mislabel_imagenet.output.scores,
        code=code("experiments.mislabel.figures.imagenet"),
    output:
        pdf=report(f"{FIGURES}/mislabel_imagenet.pdf", category="4 Wrong labels"),
        png=f"{FIGURES}/mislabel_imagenet.png",
    log:
        f"{RESULTS}/logs/figure_mislabel_imagenet.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure_mislabel_imagenet.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    shell:
        "losskernel figure-mislabel imagenet --summary {input.summary} --scores {input.scores} "
        "--output {output.pdf} --output-png {output.png} 2> {log}"


rule figure_mislabel_tiny_imagenet:
    """Heads on features of photographs, trained on flipped labels: AUC, precision and cost."""
    input:
        summary=f"{HEADS}_summary.csv",
        scores=f"{HEADS}.npz",
        code=code("experiments.mislabel.figures.tiny_imagenet"),
    output:
        pdf=report(f"{FIGURES}/mislabel_tiny_imagenet.pdf", category="4 Wrong labels"),
        png=f"{FIGURES}/mislabel_tiny_imagenet.png",
    log:
        f"{RESULTS}/logs/figure_mislabel_tiny_imagenet.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure_mislabel_tiny_imagenet.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    shell:
        "losskernel figure-mislabel tiny-imagenet --summary {input.summary} "
        "--scores {input.scores} --output {output.pdf} --output-png {output.png} 2> {log}"
