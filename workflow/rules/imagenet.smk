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
LOADING = "model weights image_size per_class max_inputs skip_unreadable"
# What the kernels of the inputs, and the hierarchy of their classes, are made of.
KERNELS = {
    "trace": f"{INTERMEDIATE}/trace.nc",
    "features": f"{INTERMEDIATE}/features.npz",
    "limit": f"{INTERMEDIATE}/limit.npz" if imagenet["limit"] else [],
    "hierarchy": HIERARCHY,
}


if IMAGES == "generated":
    # Stand-ins for photographs, for a run without data: class folders of random textures.
    IMAGES = f"{IMAGENET}/generated"

    use rule step as imagenet_generate with:
        """Random textures in class folders, in place of photographs."""
        output:
            directory(IMAGES),
        log:
            log("imagenet_generate"),
        params:
            **call(
                "imagenet.sample.generate",
                settings=json.dumps({**imagenet["generate"], "seed": SEED}),
            ),


use rule step as imagenet_sample with:
    """One chain of SGLD around the published weights; its journal survives a kill."""
    input:
        IMAGES or [],
    output:
        f"{IMAGENET}/chains/{{chain}}.nc",
    log:
        log("imagenet_sample/{chain}"),
    benchmark:
        benchmark("imagenet_sample/{chain}")
    threads: imagenet["threads"]
    resources:
        mem_mb=MODEL_MEMORY,
        runtime=1440,
        gpu=gpus(imagenet["sampling"]),
    params:
        **call(
            "imagenet.sample.sample",
            settings=settings(
                "imagenet", f"{LOADING} probe sampling", image_folder=IMAGES, seed=SEED
            ),
            journal=f"{IMAGENET}/journals/{{chain}}",
        ),


if imagenet["limit"]:

    use rule step as imagenet_gradients with:
        """Loss gradient of every image, for the exact limit and the control variate; resumable."""
        input:
            IMAGES or [],
        output:
            temp(directory(f"{IMAGENET}/gradients")),
        log:
            log("imagenet_gradients"),
        threads: imagenet["threads"]
        resources:
            mem_mb=MODEL_MEMORY,
            runtime=240,
            gpu=gpus(imagenet["sampling"]),
        params:
            **call(
                "imagenet.sample.gradients",
                settings=settings(
                    "imagenet", f"{LOADING} sampling", image_folder=IMAGES, seed=SEED
                ),
            ),

    use rule step as imagenet_limit with:
        """Gram matrix of the gradients: the kernel in the limit of high localization."""
        input:
            gradients=rules.imagenet_gradients.output,
        output:
            f"{IMAGENET}/limit.npz",
        log:
            log("imagenet_limit"),
        threads: imagenet["threads"]
        resources:
            runtime=120,
        params:
            **call("commands.limit.gram"),


use rule step as imagenet_join with:
    """All chains in one trace, with the linear part of every loss where gradients are known."""
    input:
        traces=expand(rules.imagenet_sample.output, chain=CHAINS),
        gradients=rules.imagenet_gradients.output if imagenet["limit"] else [],
    output:
        f"{IMAGENET}/trace.nc",
    log:
        log("imagenet_join"),
    threads: imagenet["threads"]
    resources:
        mem_mb=5000,
        runtime=240,
        # The noise of a chain that a GPU sampled can be drawn again on one only.
        gpu=gpus(imagenet["sampling"]) if imagenet["limit"] else 0,
    params:
        **call(
            "imagenet.sample.join",
            journals=expand(rules.imagenet_sample.params.journal, chain=CHAINS),
        ),


use rule step as imagenet_features with:
    """Penultimate features of the same images, the baseline."""
    input:
        IMAGES or [],
    output:
        f"{IMAGENET}/features.npz",
    log:
        log("imagenet_features"),
    threads: imagenet["threads"]
    resources:
        mem_mb=MODEL_MEMORY,
    params:
        **call(
            "imagenet.sample.features",
            settings=settings("imagenet", LOADING, image_folder=IMAGES, seed=SEED),
        ),


use rule step as imagenet_evaluate with:
    """Accuracy of the model on the images before any perturbation."""
    input:
        IMAGES or [],
    output:
        f"{IMAGENET}/accuracy.json",
    log:
        log("imagenet_evaluate"),
    threads: imagenet["threads"]
    resources:
        mem_mb=MODEL_MEMORY,
    params:
        **call(
            "imagenet.sample.evaluate",
            settings=settings("imagenet", LOADING, image_folder=IMAGES, seed=SEED),
        ),


use rule step as imagenet_hierarchy with:
    """The WordNet hierarchy above the classes; tracked, as it needs the corpus once only."""
    output:
        f"{IMAGENET}/hierarchy.json",
    log:
        log("imagenet_hierarchy"),
    params:
        **call("imagenet.sample.hierarchy"),


use rule step as imagenet_analyze with:
    """Every statistic of every kernel, with standard error and null; convergence."""
    input:
        **KERNELS,
    output:
        arrays=f"{IMAGENET}/analysis.npz",
        statistics=f"{IMAGENET}/statistics.csv",
        convergence=f"{IMAGENET}/convergence.csv",
    log:
        log("imagenet_analyze"),
    params:
        **call(
            "imagenet.analyze.analyze",
            settings=settings(
                "imagenet.analysis",
                "neighbors lift_neighbors cluster_depths map_neighbors permutations jackknife_blocks",
                seed=SEED,
            ),
        ),


use rule step as imagenet_embed with:
    """Maps by kernel, in two and three dimensions, and how concentrated the regions are."""
    input:
        **KERNELS,
    output:
        arrays=f"{IMAGENET}/maps.npz",
        regions=f"{IMAGENET}/regions.csv",
    log:
        log("imagenet_embed"),
    params:
        **call(
            "imagenet.analyze.embed",
            settings=settings(
                "imagenet.analysis",
                "map_kernels map_neighbors regions permutations jackknife_blocks",
                seed=SEED,
            ),
        ),


use rule step as imagenet_neighbors with:
    """Nearest neighbors of named images, as a table to read and one to compute with."""
    input:
        **KERNELS,
    output:
        table=f"{IMAGENET}/neighbors.csv",
        markdown=report(f"{IMAGENET}/neighbors.md", category="2 ImageNet"),
    log:
        log("imagenet_neighbors"),
    params:
        **call(
            "imagenet.reports.neighbors",
            settings=settings(
                "imagenet.analysis", "map_kernels named_classes named_neighbors", seed=SEED
            ),
        ),


use rule step as imagenet_leaders with:
    """Which kernel follows the hierarchy most closely, statistic by statistic."""
    input:
        statistics=rules.imagenet_analyze.output.statistics,
    output:
        table=f"{IMAGENET}/leaders.csv",
        markdown=report(f"{IMAGENET}/leaders.md", category="2 ImageNet"),
    log:
        log("imagenet_leaders"),
    params:
        **call("imagenet.reports.leaders"),


use rule step as imagenet_claims with:
    """What this experiment says of the paper's numbers."""
    input:
        analysis=rules.imagenet_analyze.output.arrays,
        statistics=rules.imagenet_analyze.output.statistics,
        regions=rules.imagenet_embed.output.regions,
        leaders=rules.imagenet_leaders.output.table,
    output:
        f"{IMAGENET}/claims.csv",
    log:
        log("imagenet_claims"),
    params:
        **call(
            "imagenet.reports.claims",
            settings=settings("imagenet.analysis", "claim_neighbors claim_depth", seed=SEED),
        ),


use rule step as figure_imagenet_map with:
    """Map of the inputs, colored by place in the hierarchy, with nine regions enlarged."""
    input:
        arrays=rules.imagenet_embed.output.arrays,
        regions=rules.imagenet_embed.output.regions,
    output:
        **figure("imagenet_map", "2 ImageNet"),
    log:
        log("figure_imagenet_map"),
    params:
        **call("imagenet.figures.map"),


use rule step as figure_imagenet_kernels with:
    """The same map by the sampled kernel, its exact limit and the features."""
    input:
        arrays=rules.imagenet_embed.output.arrays,
    output:
        **figure("imagenet_kernels", "2 ImageNet"),
    log:
        log("figure_imagenet_kernels"),
    params:
        **call("imagenet.figures.kernels"),


use rule step as figure_imagenet_orbit with:
    """The map in three dimensions, turning."""
    input:
        arrays=rules.imagenet_embed.output.arrays,
    output:
        report(f"{FIGURES}/imagenet_orbit.gif", category="2 ImageNet"),
    log:
        log("figure_imagenet_orbit"),
    params:
        **call("imagenet.figures.orbit"),


use rule step as figure_imagenet_semantics with:
    """Rank correlation, clusters and regions by kernel, with errors and nulls."""
    input:
        statistics=rules.imagenet_analyze.output.statistics,
        regions=rules.imagenet_embed.output.regions,
    output:
        **figure("imagenet_semantics", "2 ImageNet"),
    log:
        log("figure_imagenet_semantics"),
    params:
        **call("imagenet.figures.semantics"),


use rule step as figure_imagenet_thumbnails with:
    """The same map with the photographs; among the results, which are not tracked."""
    input:
        arrays=rules.imagenet_embed.output.arrays,
        images=IMAGES or [],
    output:
        pdf=f"{IMAGENET}/map_thumbnails.pdf",
        png=f"{IMAGENET}/map_thumbnails.png",
    log:
        log("figure_imagenet_thumbnails"),
    params:
        **call("imagenet.figures.thumbnails"),


use rule step as figure_imagenet_matrix with:
    """Kernel matrix beside the hierarchy's."""
    input:
        arrays=rules.imagenet_analyze.output.arrays,
    output:
        **figure("imagenet_matrix", "2 ImageNet"),
    log:
        log("figure_imagenet_matrix"),
    params:
        **call("imagenet.figures.matrix"),


use rule step as figure_imagenet_lift with:
    """Taxonomic lift by depth, with noise floor, null and baseline."""
    input:
        statistics=rules.imagenet_analyze.output.statistics,
    output:
        **figure("imagenet_lift", "2 ImageNet"),
    log:
        log("figure_imagenet_lift"),
    params:
        **call("imagenet.figures.lift"),


use rule step as figure_imagenet_convergence with:
    """CKA of the kernel against the number of draws."""
    input:
        convergence=rules.imagenet_analyze.output.convergence,
        trace=f"{INTERMEDIATE}/trace.nc",
    output:
        **figure("imagenet_convergence", "2 ImageNet"),
    log:
        log("figure_imagenet_convergence"),
    params:
        **call("imagenet.figures.convergence"),
