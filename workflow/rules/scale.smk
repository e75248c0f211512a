"""The loss kernel of all validation images of Tiny ImageNet, at the paper's number of inputs.

With a network of the development experiment at its last checkpoint. Where there is an archive of
images the kernels are computed, else the tracked tables and maps of them are read.
"""

scale = config["scale"]
of_scale = partial(settings, "scale.analysis", headline=scale["headline"])
SCALE_TABLES = ("lifts", "within", "facts")
SCALE = f"{RESULTS}/scale"
SCALE_MEASURED = f"{REFERENCE if tiny['archive'] is None else RESULTS}/scale"
SCALE_NETWORK = {"network": scale["training_seed"]}


wildcard_constraints:
    rise=r"\d+(\.\d+)?",


use rule step as scale_kernel with:
    """The kernel of one rise, on disk, and its neighbors, diagonal and pairs within classes."""
    input:
        expand(rules.development_train.output, **SCALE_NETWORK),
        archive=TINY_ARCHIVE or [],
    output:
        f"{SCALE}/kernels/{{rise}}.npz",
    benchmark:
        benchmark("scale_kernel/{rise}")
    threads: tiny["threads"]
    resources:
        mem_mb=6000,
        runtime=240,
        gpu=gpus(scale),
    params:
        **call(
            "scale.sample.kernel",
            settings=classifier(
                f"{PREPARED} calibration_per_class",
                probe_per_class=scale["per_class"],
                step=max(tiny["checkpoints"]),
                seed=SEED,
                **{key: scale[key] for key in ("pilot", "pairs", "width", "neighbors", "device")},
            ),
            folder=expand(rules.development_train.params.folder, **SCALE_NETWORK)[0],
            journal=f"{SCALE}/journals/{{rise}}",
        ),


use rule step as scale_measure with:
    """Lift by depth, likeness within classes, facts of the runs, and maps, with errors and nulls."""
    input:
        kernels=expand(rules.scale_kernel.output, rise=scale["rises"]),
        hierarchy=HIERARCHY,
    output:
        lifts=f"{SCALE}/lifts.csv",
        within=f"{SCALE}/within.csv",
        facts=f"{SCALE}/facts.csv",
        maps=f"{SCALE}/maps.npz",
    params:
        **call("scale.analyze.measure", settings=of_scale(seed=SEED)),


use rule step as scale_claims with:
    """What this kernel says beside the paper's."""
    input:
        **{name: f"{SCALE_MEASURED}/{name}.csv" for name in SCALE_TABLES},
    output:
        f"{SCALE}/claims.csv",
    params:
        **call("scale.analyze.claims", settings=of_scale(training_seed=scale["training_seed"])),


use rule step as figure_scale with:
    """Maps of all images, lift by depth and likeness within classes."""
    input:
        **{name: f"{SCALE_MEASURED}/{name}.csv" for name in SCALE_TABLES},
        maps=f"{SCALE_MEASURED}/maps.npz",
    output:
        **figure("scale", "5 Development"),
    params:
        **call("scale.figures.figure"),
