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


use rule step as gamma_sweep_small_analyze with:
    """Lifts, contrasts, CKA and convergence at every gamma, and their trends."""
    input:
        traces=expand(f"{SMALL_INTERMEDIATE}/{{number}}.nc", number=range(len(small["gammas"]))),
        colors=f"{SMALL_INTERMEDIATE}/colors.csv",
        limit=f"{SMALL_INTERMEDIATE}/limit.npz",
        hierarchy=HIERARCHY,
    output:
        metrics=f"{SMALL}/metrics.csv",
        regimes=f"{SMALL}/regimes.csv",
        trends=f"{SMALL}/trends.csv",
        cka=f"{SMALL}/cka.csv",
    log:
        log("gamma_sweep_small_analyze"),
    params:
        **call(
            "gamma_sweep.analyze.analyze",
            settings=settings(
                "gamma_sweep.analysis",
                base={"n_beta": small["n_beta"], "gamma": 0, "step_size": 0},
                seed=SEED,
            ),
        ),


use rule step as gamma_sweep_small_claims with:
    """What this sweep says of the paper's claims."""
    input:
        metrics=rules.gamma_sweep_small_analyze.output.metrics,
        trends=rules.gamma_sweep_small_analyze.output.trends,
        regimes=rules.gamma_sweep_small_analyze.output.regimes,
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
                neighbors=sweep["analysis"]["neighbors"],
                discard=sweep["analysis"]["discard"],
                chains=small["sampling"]["chains"],
                draws=small["sampling"]["draws"],
            ),
        ),


use rule step as figure_gamma_sweep_small with:
    """Lifts by hierarchy and by color, and the mean loss, along gamma."""
    input:
        metrics=rules.gamma_sweep_small_analyze.output.metrics,
        regimes=rules.gamma_sweep_small_analyze.output.regimes,
    output:
        **figure("gamma_sweep_small", "2 ImageNet"),
    log:
        log("figure_gamma_sweep_small"),
    params:
        **call("gamma_sweep.figures.small", settings=settings("gamma_sweep.analysis")),
