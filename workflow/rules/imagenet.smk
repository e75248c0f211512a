"""Experiment 2: sample an image classifier and hold its kernel against the WordNet hierarchy.

The provider of the trace is chosen by the config: sampled from `imagenet.image_folder` if one is
given, else the tracked trace. The analysis is the same either way.
"""

IMAGENET = f"{RESULTS}/imagenet"
imagenet = config["imagenet"]
IMAGES = imagenet["image_folder"]
# What is computed from images, or its tracked copy.
INTERMEDIATE = f"{REFERENCE}/imagenet" if IMAGES is None else IMAGENET
CHAINS = range(imagenet["sampling"]["chains"])
# MB of a job that runs the model on the images: they are decoded into memory as float32 and held three
# times for a moment (loaded, stacked, reordered). Where the config leaves their number or size open,
# room for 1.3 GB of them: 2,000 images of 224 px. A profile's set-resources can ask for more.
DECODED = 12 * (imagenet["max_inputs"] or 0) * (imagenet["image_size"] or 0) ** 2 // 10**6
MODEL_MEMORY = 4000 + 3 * max(1300, DECODED)
LOADING = ("model", "weights", "image_size", "per_class", "max_inputs", "skip_unreadable")
# What the kernels of the inputs, and the hierarchy of their classes, are made of.
KERNELS = {
    "trace": f"{INTERMEDIATE}/trace.nc",
    "features": f"{INTERMEDIATE}/features.npz",
    "limit": f"{INTERMEDIATE}/limit.npz" if imagenet["limit"] else [],
    "hierarchy": f"{REFERENCE}/imagenet/hierarchy.json",
}


if IMAGES == "generated":
    # Stand-ins for photographs, for a run without data: class folders of random textures.
    IMAGES = f"{IMAGENET}/generated"

    rule imagenet_generate:
        """Random textures in class folders, in place of photographs."""
        input:
            code=code("experiments.imagenet.sample.generate"),
        output:
            directory(IMAGES),
        log:
            f"{RESULTS}/logs/imagenet_generate.log",
        benchmark:
            f"{RESULTS}/benchmarks/imagenet_generate.tsv"
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=1000,
            runtime=5,
        params:
            settings=json.dumps({**imagenet["generate"], "seed": config["seed"]}),
        shell:
            "losskernel imagenet generate --settings {params.settings:q} --output {output} "
            "2> {log}"


rule imagenet_sample:
    """One chain of SGLD around the published weights; its journal survives a kill."""
    input:
        images=IMAGES or [],
        code=code("experiments.imagenet.sample.sample"),
    output:
        f"{IMAGENET}/chains/{{chain}}.nc",
    log:
        f"{RESULTS}/logs/imagenet_sample/{{chain}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/imagenet_sample/{{chain}}.tsv"
    conda:
        ENVIRONMENT
    threads: imagenet["threads"]
    resources:
        mem_mb=MODEL_MEMORY,
        runtime=1440,
        gpu=gpus(imagenet["sampling"]),
    params:
        settings=settings(
            "imagenet",
            *LOADING,
            "probe",
            "sampling",
            image_folder=IMAGES,
            seed=config["seed"],
        ),
        journal=f"{IMAGENET}/journals/{{chain}}",
    shell:
        "losskernel imagenet sample --settings {params.settings:q} --chain {wildcards.chain} "
        "--journal {params.journal} --output {output} 2> {log}"


if imagenet["limit"]:

    rule imagenet_gradients:
        """Loss gradient of every image, for the exact limit and the control variate; resumable."""
        input:
            images=IMAGES or [],
            code=code("experiments.imagenet.sample.gradients"),
        output:
            temp(directory(f"{IMAGENET}/gradients")),
        log:
            f"{RESULTS}/logs/imagenet_gradients.log",
        benchmark:
            f"{RESULTS}/benchmarks/imagenet_gradients.tsv"
        conda:
            ENVIRONMENT
        threads: imagenet["threads"]
        resources:
            mem_mb=MODEL_MEMORY,
            runtime=240,
            gpu=gpus(imagenet["sampling"]),
        params:
            settings=settings(
                "imagenet", *LOADING, "sampling", image_folder=IMAGES, seed=config["seed"]
            ),
        shell:
            "losskernel imagenet gradients --settings {params.settings:q} --output {output} "
            "2> {log}"

    rule imagenet_limit:
        """Gram matrix of the gradients: the kernel in the limit of high localization."""
        input:
            gradients=rules.imagenet_gradients.output,
            code=code("commands.limit.gram"),
        output:
            f"{IMAGENET}/limit.npz",
        log:
            f"{RESULTS}/logs/imagenet_limit.log",
        benchmark:
            f"{RESULTS}/benchmarks/imagenet_limit.tsv"
        conda:
            ENVIRONMENT
        threads: imagenet["threads"]
        resources:
            mem_mb=3000,
            runtime=120,
        shell:
            "losskernel limit gram --gradients {input.gradients} --output {output} 2> {log}"


rule imagenet_join:
    """All chains in one trace, with the linear part of every loss where gradients are known."""
    input:
        traces=expand(rules.imagenet_sample.output, chain=CHAINS),
        gradients=rules.imagenet_gradients.output if imagenet["limit"] else [],
        code=code("experiments.imagenet.sample.join"),
    output:
        f"{IMAGENET}/trace.nc",
    log:
        f"{RESULTS}/logs/imagenet_join.log",
    benchmark:
        f"{RESULTS}/benchmarks/imagenet_join.tsv"
    conda:
        ENVIRONMENT
    threads: imagenet["threads"]
    resources:
        mem_mb=5000,
        runtime=240,
        # The noise of a chain that a GPU sampled can be drawn again on one only.
        gpu=gpus(imagenet["sampling"]) if imagenet["limit"] else 0,
    params:
        journals=expand(rules.imagenet_sample.params.journal, chain=CHAINS),
        gradients=lambda wildcards, input: (
            f"--gradients {input.gradients}" if imagenet["limit"] else ""
        ),
    shell:
        "losskernel imagenet join --traces {input.traces} --journals {params.journals} "
        "{params.gradients} --output {output} 2> {log}"


rule imagenet_features:
    """Penultimate features of the same images, the baseline."""
    input:
        images=IMAGES or [],
        code=code("experiments.imagenet.sample.features"),
    output:
        f"{IMAGENET}/features.npz",
    log:
        f"{RESULTS}/logs/imagenet_features.log",
    benchmark:
        f"{RESULTS}/benchmarks/imagenet_features.tsv"
    conda:
        ENVIRONMENT
    threads: imagenet["threads"]
    resources:
        mem_mb=MODEL_MEMORY,
        runtime=60,
    params:
        settings=settings("imagenet", *LOADING, image_folder=IMAGES, seed=config["seed"]),
    shell:
        "losskernel imagenet features --settings {params.settings:q} --output {output} 2> {log}"


rule imagenet_evaluate:
    """Accuracy of the model on the images before any perturbation."""
    input:
        images=IMAGES or [],
        code=code("experiments.imagenet.sample.evaluate"),
    output:
        f"{IMAGENET}/accuracy.json",
    log:
        f"{RESULTS}/logs/imagenet_evaluate.log",
    benchmark:
        f"{RESULTS}/benchmarks/imagenet_evaluate.tsv"
    conda:
        ENVIRONMENT
    threads: imagenet["threads"]
    resources:
        mem_mb=MODEL_MEMORY,
        runtime=60,
    params:
        settings=settings("imagenet", *LOADING, image_folder=IMAGES, seed=config["seed"]),
    shell:
        "losskernel imagenet evaluate --settings {params.settings:q} --output {output} 2> {log}"


rule imagenet_hierarchy:
    """The WordNet hierarchy above the classes; tracked, as it needs the corpus once only."""
    input:
        code=code("experiments.imagenet.sample.hierarchy"),
    output:
        f"{IMAGENET}/hierarchy.json",
    log:
        f"{RESULTS}/logs/imagenet_hierarchy.log",
    benchmark:
        f"{RESULTS}/benchmarks/imagenet_hierarchy.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    shell:
        "losskernel imagenet hierarchy --output {output} 2> {log}"


rule imagenet_analyze:
    """Every statistic of every kernel, with standard error and null; convergence."""
    input:
        **KERNELS,
        code=code("experiments.imagenet.analyze.analyze"),
    output:
        arrays=f"{IMAGENET}/analysis.npz",
        statistics=f"{IMAGENET}/statistics.csv",
        convergence=f"{IMAGENET}/convergence.csv",
    log:
        f"{RESULTS}/logs/imagenet_analyze.log",
    benchmark:
        f"{RESULTS}/benchmarks/imagenet_analyze.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        kernels=file_options(KERNELS),
        settings=settings_in_order(
            "imagenet.analysis",
            "neighbors",
            "lift_neighbors",
            "cluster_depths",
            "map_neighbors",
            "permutations",
            "jackknife_blocks",
            seed=config["seed"],
        ),
    shell:
        "losskernel semantic analyze {params.kernels} --settings {params.settings:q} "
        "--output {output.arrays} --output-statistics {output.statistics} "
        "--output-convergence {output.convergence} 2> {log}"


rule imagenet_embed:
    """Maps by kernel, in two and three dimensions, and how concentrated the regions are."""
    input:
        **KERNELS,
        code=code("experiments.imagenet.analyze.embed"),
    output:
        arrays=f"{IMAGENET}/maps.npz",
        regions=f"{IMAGENET}/regions.csv",
    log:
        f"{RESULTS}/logs/imagenet_embed.log",
    benchmark:
        f"{RESULTS}/benchmarks/imagenet_embed.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        kernels=file_options(KERNELS),
        settings=settings_in_order(
            "imagenet.analysis",
            "map_kernels",
            "map_neighbors",
            "regions",
            "permutations",
            "jackknife_blocks",
            seed=config["seed"],
        ),
    shell:
        "losskernel semantic embed {params.kernels} --settings {params.settings:q} "
        "--output {output.arrays} --output-regions {output.regions} 2> {log}"


rule imagenet_neighbors:
    """Nearest neighbors of named images, as a table to read and one to compute with."""
    input:
        **KERNELS,
        code=code("experiments.imagenet.reports.neighbors"),
    output:
        table=f"{IMAGENET}/neighbors.csv",
        markdown=report(f"{IMAGENET}/neighbors.md", category="2 ImageNet"),
    log:
        f"{RESULTS}/logs/imagenet_neighbors.log",
    benchmark:
        f"{RESULTS}/benchmarks/imagenet_neighbors.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=4000,
        runtime=10,
    params:
        kernels=file_options(KERNELS),
        settings=settings_in_order(
            "imagenet.analysis",
            "map_kernels",
            "named_classes",
            "named_neighbors",
            seed=config["seed"],
        ),
    shell:
        "losskernel semantic-reports neighbors {params.kernels} --settings {params.settings:q} "
        "--output {output.table} --output-markdown {output.markdown} 2> {log}"


rule imagenet_leaders:
    """Which kernel follows the hierarchy most closely, statistic by statistic."""
    input:
        statistics=rules.imagenet_analyze.output.statistics,
        code=code("experiments.imagenet.reports.leaders"),
    output:
        table=f"{IMAGENET}/leaders.csv",
        markdown=report(f"{IMAGENET}/leaders.md", category="2 ImageNet"),
    log:
        f"{RESULTS}/logs/imagenet_leaders.log",
    benchmark:
        f"{RESULTS}/benchmarks/imagenet_leaders.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    shell:
        "losskernel semantic-reports leaders --statistics {input.statistics} "
        "--output {output.table} --output-markdown {output.markdown} 2> {log}"


rule imagenet_claims:
    """What this experiment says of the paper's numbers."""
    input:
        arrays=rules.imagenet_analyze.output.arrays,
        statistics=rules.imagenet_analyze.output.statistics,
        regions=rules.imagenet_embed.output.regions,
        leaders=rules.imagenet_leaders.output.table,
        code=code("experiments.imagenet.reports.claims"),
    output:
        f"{IMAGENET}/claims.csv",
    log:
        f"{RESULTS}/logs/imagenet_claims.log",
    benchmark:
        f"{RESULTS}/benchmarks/imagenet_claims.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        settings=settings_in_order(
            "imagenet.analysis", "claim_neighbors", "claim_depth", seed=config["seed"]
        ),
    shell:
        "losskernel semantic-reports claims --analysis {input.arrays} "
        "--statistics {input.statistics} --regions {input.regions} --leaders {input.leaders} "
        "--settings {params.settings:q} --output {output} 2> {log}"


rule figure_imagenet_map:
    """Map of the inputs, colored by place in the hierarchy, with nine regions enlarged."""
    input:
        arrays=rules.imagenet_embed.output.arrays,
        regions=rules.imagenet_embed.output.regions,
        code=code("experiments.imagenet.figures.map"),
    output:
        pdf=report(f"{FIGURES}/imagenet_map.pdf", category="2 ImageNet"),
        png=f"{FIGURES}/imagenet_map.png",
    log:
        f"{RESULTS}/logs/figure_imagenet_map.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure_imagenet_map.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=5,
    shell:
        "losskernel figure-imagenet map --arrays {input.arrays} --regions {input.regions} "
        "--output {output.pdf} --output-png {output.png} 2> {log}"


rule figure_imagenet_kernels:
    """The same map by the sampled kernel, its exact limit and the features."""
    input:
        arrays=rules.imagenet_embed.output.arrays,
        code=code("experiments.imagenet.figures.kernels"),
    output:
        pdf=report(f"{FIGURES}/imagenet_kernels.pdf", category="2 ImageNet"),
        png=f"{FIGURES}/imagenet_kernels.png",
    log:
        f"{RESULTS}/logs/figure_imagenet_kernels.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure_imagenet_kernels.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=5,
    shell:
        "losskernel figure-imagenet kernels --arrays {input.arrays} "
        "--output {output.pdf} --output-png {output.png} 2> {log}"


rule figure_imagenet_orbit:
    """The map in three dimensions, turning."""
    input:
        arrays=rules.imagenet_embed.output.arrays,
        code=code("experiments.imagenet.figures.orbit"),
    output:
        report(f"{FIGURES}/imagenet_orbit.gif", category="2 ImageNet"),
    log:
        f"{RESULTS}/logs/figure_imagenet_orbit.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure_imagenet_orbit.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=5,
    shell:
        "losskernel figure-imagenet orbit --arrays {input.arrays} " "--output {output} 2> {log}"


rule figure_imagenet_semantics:
    """Rank correlation, clusters and regions by kernel, with errors and nulls."""
    input:
        statistics=rules.imagenet_analyze.output.statistics,
        regions=rules.imagenet_embed.output.regions,
        code=code("experiments.imagenet.figures.semantics"),
    output:
        pdf=report(f"{FIGURES}/imagenet_semantics.pdf", category="2 ImageNet"),
        png=f"{FIGURES}/imagenet_semantics.png",
    log:
        f"{RESULTS}/logs/figure_imagenet_semantics.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure_imagenet_semantics.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=5,
    shell:
        "losskernel figure-imagenet semantics --statistics {input.statistics} --regions {input.regions} "
        "--output {output.pdf} --output-png {output.png} 2> {log}"


rule figure_imagenet_thumbnails:
    """The same map with the photographs; among the results, which are not tracked."""
    input:
        arrays=rules.imagenet_embed.output.arrays,
        images=IMAGES or [],
        code=code("experiments.imagenet.figures.thumbnails"),
    output:
        pdf=f"{IMAGENET}/map_thumbnails.pdf",
        png=f"{IMAGENET}/map_thumbnails.png",
    log:
        f"{RESULTS}/logs/figure_imagenet_thumbnails.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure_imagenet_thumbnails.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    shell:
        "losskernel figure-imagenet thumbnails --arrays {input.arrays} --images {input.images} "
        "--output {output.pdf} --output-png {output.png} 2> {log}"


rule figure_imagenet_matrix:
    """Kernel matrix beside the hierarchy's."""
    input:
        arrays=rules.imagenet_analyze.output.arrays,
        code=code("experiments.imagenet.figures.matrix"),
    output:
        pdf=report(f"{FIGURES}/imagenet_matrix.pdf", category="2 ImageNet"),
        png=f"{FIGURES}/imagenet_matrix.png",
    log:
        f"{RESULTS}/logs/figure_imagenet_matrix.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure_imagenet_matrix.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=5,
    shell:
        "losskernel figure-imagenet matrix --arrays {input.arrays} --output {output.pdf} "
        "--output-png {output.png} 2> {log}"


rule figure_imagenet_lift:
    """Taxonomic lift by depth, with noise floor, null and baseline."""
    input:
        statistics=rules.imagenet_analyze.output.statistics,
        code=code("experiments.imagenet.figures.lift"),
    output:
        pdf=report(f"{FIGURES}/imagenet_lift.pdf", category="2 ImageNet"),
        png=f"{FIGURES}/imagenet_lift.png",
    log:
        f"{RESULTS}/logs/figure_imagenet_lift.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure_imagenet_lift.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    shell:
        "losskernel figure-imagenet lift --statistics {input.statistics} --output {output.pdf} "
        "--output-png {output.png} 2> {log}"


rule figure_imagenet_convergence:
    """CKA of the kernel against the number of draws."""
    input:
        convergence=rules.imagenet_analyze.output.convergence,
        trace=f"{INTERMEDIATE}/trace.nc",
        code=code("experiments.imagenet.figures.convergence"),
    output:
        pdf=report(f"{FIGURES}/imagenet_convergence.pdf", category="2 ImageNet"),
        png=f"{FIGURES}/imagenet_convergence.png",
    log:
        f"{RESULTS}/logs/figure_imagenet_convergence.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure_imagenet_convergence.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    shell:
        "losskernel figure-imagenet convergence --convergence {input.convergence} "
        "--trace {input.trace} --output {output.pdf} --output-png {output.png} 2> {log}"
