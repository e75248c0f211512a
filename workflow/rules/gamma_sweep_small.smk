"""The localization sweep on the small network of the development experiment, at its last checkpoint.

As there, traces are sampled where there is an archive of images, else their tracked copies are read.
"""

small = sweep["small"]
SMALL = f"{SWEEP}/small"
SMALL_INTERMEDIATE = f"{REFERENCE}/gamma_sweep/small" if tiny["archive"] is None else SMALL
SMALL_STEP = max(tiny["checkpoints"])
SMALL_PROBLEM = f"{PREPARED} gradient_per_class probe_per_class calibration_batches"
SMALL_FOLDER = expand(rules.development_train.params.folder, network=small["training_seed"])[0]


wildcard_constraints:
    small_gamma=r"\d+",


use rule step as gamma_sweep_small_sample with:
    """The chains of one gamma; their journal survives a kill."""
    input:
        expand(rules.development_train.output, network=small["training_seed"]),
        archive=TINY_ARCHIVE or [],
    output:
        f"{SMALL}/{{small_gamma}}.nc",
    log:
        log("gamma_sweep_small_sample/{small_gamma}"),
    benchmark:
        benchmark("gamma_sweep_small_sample/{small_gamma}")
    threads: tiny["threads"]
    resources:
        runtime=240,
        gpu=gpus(small["sampling"]),
    params:
        **call(
            "gamma_sweep.small.sample",
            settings=settings(
                "development.tiny_imagenet",
                SMALL_PROBLEM,
                **{"step": SMALL_STEP, **small, "seed": SEED},
            ),
            folder=SMALL_FOLDER,
            number=lambda wildcards: wildcards.small_gamma,
            journal=f"{SMALL}/journals/{{small_gamma}}",
        ),


use rule step as gamma_sweep_small_limit with:
    """Gram matrix of the loss gradients of the same inputs, and their mean colors."""
    input:
        expand(rules.development_train.output, network=small["training_seed"]),
        archive=TINY_ARCHIVE or [],
    output:
        limit=f"{SMALL}/limit.npz",
        colors=f"{SMALL}/colors.csv",
    log:
        log("gamma_sweep_small_limit"),
    threads: tiny["threads"]
    params:
        **call(
            "gamma_sweep.small.limit",
            settings=settings("development.tiny_imagenet", SMALL_PROBLEM, step=SMALL_STEP),
            folder=SMALL_FOLDER,
        ),


use rule gamma_sweep_analyze as gamma_sweep_small_analyze with:
    """Hierarchy and color in the kernel of the small network at every localization."""
    input:
        traces=expand(f"{SMALL_INTERMEDIATE}/{{number}}.nc", number=range(len(small["gammas"]))),
        colors=f"{SMALL_INTERMEDIATE}/colors.csv",
        limit=f"{SMALL_INTERMEDIATE}/limit.npz",
        hierarchy=HIERARCHY,
    output:
        f"{SMALL}/metrics.csv",
    log:
        log("gamma_sweep_small_analyze"),


use rule step as gamma_sweep_small_claims with:
    """What this sweep says of the paper's claims."""
    input:
        metrics=rules.gamma_sweep_small_analyze.output,
    output:
        f"{SMALL}/claims.csv",
    log:
        log("gamma_sweep_small_claims"),
    params:
        **call(
            "gamma_sweep.claims.small",
            settings=settings(
                "gamma_sweep.small",
                "training_seed n_beta relaxation",
                discard=sweep["analysis"]["discard"],
                chains=small["sampling"]["chains"],
                draws=small["sampling"]["draws"],
            ),
        ),


use rule figure_gamma_sweep as figure_gamma_sweep_small with:
    """The same of the small network."""
    input:
        metrics=rules.gamma_sweep_small_analyze.output,
    output:
        **figure("gamma_sweep_small", "2 ImageNet"),
    log:
        log("figure_gamma_sweep_small"),
