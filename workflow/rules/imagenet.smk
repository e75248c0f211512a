"""Experiment 2: sample an image classifier and hold its kernel against the WordNet hierarchy.

The provider of the kernels is chosen by the config: computed from `imagenet.image_folder` if one is
given, else the tracked ones. The analysis is the same either way.
"""

IMAGENET = f"{RESULTS}/imagenet"
imagenet = config["imagenet"]
IMAGES = imagenet["image_folder"]
# What is computed from images, or its tracked copy.
INTERMEDIATE = f"{REFERENCE}/imagenet" if IMAGES is None else IMAGENET
HEADLINE = imagenet["kernel"]["headline"]
PROBES = {f"{probe['gamma']:g}": probe for probe in imagenet["kernel"]["probes"]}
# Kernels that the localization sweep alone reads are made by the same rule.
SWEPT = PROBES | {f"{probe['gamma']:g}": probe for probe in config["gamma_sweep"]["probes"]}
# MB of a job that runs the model on the images: they are decoded into memory as float32 and held three
# times for a moment (loaded, stacked, reordered). Where the config leaves their number or size open,
# room for 1.3 GB of them: 2,000 images of 224 px. A profile's set-resources can ask for more.
DECODED = 12 * (imagenet["max_inputs"] or 0) * (imagenet["image_size"] or 0) ** 2 // 10**6
MODEL_MEMORY = 4000 + 3 * max(1300, DECODED)
# Losses of independent draws under right and wrong labels check the kernels by gradients.
DIRECT = config["mislabel"]["imagenet"]["include"]
LOADING = "model weights image_size per_class max_inputs skip_unreadable"
PAIRED = {key: imagenet["kernel"][key] for key in ("width", "device")}
# What the kernels of the inputs, and the hierarchy of their classes, are made of.
KERNELS = {
    "kernels": expand(f"{INTERMEDIATE}/kernels/{{gamma}}.npz", gamma=PROBES),
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
        params:
            **call("imagenet.sample.generate", settings=settings("imagenet.generate", seed=SEED)),


loading = partial(settings, "imagenet", image_folder=IMAGES, seed=SEED)
analysis = partial(settings, "imagenet.analysis", headline=HEADLINE)


use rule step as imagenet_manifest with:
    """Name, size and hash of every image; what is computed from the images refers to it."""
    input:
        images=IMAGES or [],
    output:
        f"{IMAGENET}/manifest.csv",
    params:
        **call("imagenet.sample.manifest"),
        stamp=stamp(imagenet["image_folder"]),


# Of no use where there are no images: then no rule that needs it runs.
MANIFEST = rules.imagenet_manifest.output


use rule step as imagenet_kernel with:
    """The kernel at one localization from gradients at pairs of draws; its journal survives a kill."""
    input:
        manifest=MANIFEST,
    output:
        f"{IMAGENET}/kernels/{{gamma}}.npz",
    benchmark:
        benchmark("imagenet_kernel/{gamma}")
    threads: imagenet["threads"]
    resources:
        mem_mb=MODEL_MEMORY,
        runtime=1440,
        gpu=gpus(imagenet["kernel"]),
    params:
        **call(
            "imagenet.sample.kernel",
            settings=loading(LOADING, **PAIRED),
            pairs=lambda wildcards: SWEPT[wildcards.gamma]["pairs"],
            groups=lambda wildcards: SWEPT[wildcards.gamma]["groups"],
            journal=f"{IMAGENET}/journals/{{gamma}}",
        ),


tempered = imagenet["tempered"]


use rule imagenet_kernel as imagenet_tempered with:
    """The kernel at the headline with the data in the probe; its journal survives a kill."""
    output:
        f"{IMAGENET}/tempered/{{share}}.npz",
    benchmark:
        benchmark("imagenet_tempered/{share}")
    params:
        **call(
            "imagenet.tempered.kernel",
            settings=loading(
                LOADING,
                **PAIRED,
                **{key: tempered[key] for key in ("max_inputs", "pairs", "groups")},
            ),
            gamma=HEADLINE,
            journal=f"{IMAGENET}/journals/tempered-{{share}}",
        ),
        # In place of what imagenet_kernel asks of its gamma, which this rule has not.
        **{key: tempered[key] for key in ("pairs", "groups")},


use rule step as imagenet_tempered_measure with:
    """Rise and agreement with WordNet of these kernels, beside that without the data."""
    input:
        kernels=expand(f"{INTERMEDIATE}/tempered/{{share}}.npz", share=tempered["shares"]),
        isotropic=f"{INTERMEDIATE}/kernels/{HEADLINE:g}.npz",
        hierarchy=HIERARCHY,
    output:
        f"{IMAGENET}/tempered.csv",
    params:
        **call("imagenet.tempered.measure", settings=json.dumps({"seed": SEED})),


if imagenet["limit"]:

    use rule step as imagenet_gradients with:
        """Loss gradient of every image at the trained weights, for the exact limit; resumable."""
        input:
            manifest=MANIFEST,
        output:
            temp(directory(f"{IMAGENET}/gradients")),
        threads: imagenet["threads"]
        resources:
            mem_mb=MODEL_MEMORY,
            runtime=240,
            gpu=gpus(imagenet["kernel"]),
        params:
            **call(
                "imagenet.sample.gradients",
                settings=loading(LOADING, device=imagenet["kernel"]["device"]),
            ),

    use rule step as imagenet_limit with:
        """Gram matrix of the gradients: the kernel in the limit of high localization."""
        input:
            gradients=rules.imagenet_gradients.output,
        output:
            f"{IMAGENET}/limit.npz",
        threads: imagenet["threads"]
        resources:
            runtime=120,
        params:
            **call("commands.limit.gram"),


use rule step as imagenet_features with:
    """Penultimate features of the same images, the baseline."""
    input:
        manifest=MANIFEST,
    output:
        f"{IMAGENET}/features.npz",
    threads: imagenet["threads"]
    resources:
        mem_mb=MODEL_MEMORY,
    params:
        **call("imagenet.sample.features", settings=loading(LOADING)),


use rule imagenet_features as imagenet_evaluate with:
    """Accuracy of the model on the images before any perturbation."""
    output:
        f"{IMAGENET}/accuracy.json",
    params:
        **call("imagenet.sample.evaluate", settings=loading(LOADING)),


use rule step as imagenet_hierarchy with:
    """The WordNet hierarchy above the classes; tracked, as it needs the corpus once only."""
    output:
        f"{IMAGENET}/hierarchy.json",
    params:
        **call("imagenet.sample.hierarchy"),


use rule step as imagenet_analyze with:
    """Every statistic of every kernel, with standard errors and nulls."""
    input:
        **KERNELS,
    output:
        arrays=f"{IMAGENET}/analysis.npz",
        statistics=f"{IMAGENET}/statistics.csv",
        headline=f"{IMAGENET}/headline.csv",
    params:
        **call(
            "imagenet.analyze.analyze",
            settings=analysis(
                "lift_neighbors cluster_depths claim_neighbors claim_depth map_neighbors permutations",
                seed=SEED,
            ),
        ),


use rule step as imagenet_embed with:
    """Maps by kernel, and how concentrated the regions are."""
    input:
        **KERNELS,
    output:
        arrays=f"{IMAGENET}/maps.npz",
        regions=f"{IMAGENET}/regions.csv",
    params:
        **call(
            "imagenet.analyze.embed",
            settings=analysis("map_neighbors regions permutations", seed=SEED),
        ),


use rule step as imagenet_browse with:
    """The maps as one page for the browser; with small pictures where the images are."""
    input:
        **KERNELS,
        images=IMAGES or [],
    output:
        report(
            f"{IMAGENET}/map.html",
            category="2 ImageNet",
            labels={"figure": "imagenet map in the browser"},
            caption="../report/imagenet_browse.rst",
        ),
    params:
        **call("imagenet.analyze.browse", settings=analysis("map_neighbors", seed=SEED)),


use rule step as imagenet_neighbors with:
    """Nearest neighbors of named images, as a table to read and one to compute with."""
    input:
        **KERNELS,
    output:
        table=f"{IMAGENET}/neighbors.csv",
        markdown=report(f"{IMAGENET}/neighbors.md", category="2 ImageNet"),
    params:
        **call("imagenet.reports.neighbors", settings=analysis("named_classes named_neighbors")),


use rule step as imagenet_claims with:
    """What this experiment says of the paper's numbers."""
    input:
        **outputs(rules.imagenet_analyze, "statistics headline"),
        regions=rules.imagenet_embed.output.regions,
        direct=f"{IMAGENET}/direct_draws.csv" if DIRECT else [],
        tempered=rules.imagenet_tempered_measure.output if tempered["shares"] else [],
    output:
        f"{IMAGENET}/claims.csv",
    params:
        **call(
            "imagenet.reports.claims",
            settings=analysis("claim_neighbors claim_depth", model=imagenet["model"]),
        ),


use rule step as figure_imagenet_map with:
    """Map of the headline's kernel with names of classes, and regions by kernel."""
    input:
        **outputs(rules.imagenet_embed, "arrays regions"),
        headline=rules.imagenet_analyze.output.headline,
    output:
        **figure("imagenet_map", "2 ImageNet"),
    params:
        **call("imagenet.figures.map"),


use rule step as figure_imagenet_kernels with:
    """The maps of all kernels side by side, from the exact limit to the features."""
    input:
        arrays=rules.imagenet_embed.output.arrays,
        headline=rules.imagenet_analyze.output.headline,
    output:
        **figure("imagenet_kernels", "2 ImageNet"),
    params:
        **call("imagenet.figures.kernels"),


use rule step as figure_imagenet_semantics with:
    """Agreement with WordNet by kernel: correlation without noise, lift, clusters."""
    input:
        **outputs(rules.imagenet_analyze, "statistics headline"),
    output:
        **figure("imagenet_semantics", "2 ImageNet"),
    params:
        **call("imagenet.figures.semantics"),


use rule step as figure_imagenet_matrix with:
    """Kernel matrix beside the hierarchy's."""
    input:
        arrays=rules.imagenet_analyze.output.arrays,
    output:
        **figure("imagenet_matrix", "2 ImageNet"),
    params:
        **call("imagenet.figures.matrix"),


use rule step as figure_imagenet_lift with:
    """Lift of the nearest and of the most opposed inputs by depth."""
    input:
        statistics=rules.imagenet_analyze.output.statistics,
    output:
        **figure("imagenet_lift", "2 ImageNet"),
    params:
        **call("imagenet.figures.lift"),
