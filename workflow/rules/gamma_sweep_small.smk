"""The localization sweep on networks of the development experiment, at their last checkpoint.

Kernels are computed where there is an archive of images, else the tracked tables of what was measured
of them are read.
"""

small = sweep["small"]
SMALL = f"{SWEEP}/small"
SMALL_MEASURED = f"{REFERENCE}/gamma_sweep/small" if tiny["archive"] is None else SMALL
SMALL_STEP = max(tiny["checkpoints"])


wildcard_constraints:
    small_gamma=r"\d+",


use rule development_sample as gamma_sweep_small_sample with:
    """The kernel of a network at one gamma; its journal survives a kill."""
    output:
        f"{SMALL}/{{network}}/{{small_gamma}}.npz",
    benchmark:
        benchmark("gamma_sweep_small_sample/{network}-{small_gamma}")
    params:
        **call(
            "gamma_sweep.small.sample",
            settings=classifier(f"{PREPARED} {PROBED}", **{"step": SMALL_STEP, **small}),
            folder=rules.development_train.params.folder,
            number=lambda wildcards: wildcards.small_gamma,
            journal=f"{SMALL}/journals/{{network}}-{{small_gamma}}",
        ),


use rule step as gamma_sweep_small_limit with:
    """Gram matrix of the loss gradients of the same inputs, and their mean colors and textures."""
    input:
        rules.development_train.output,
        archive=TINY_ARCHIVE or [],
    output:
        limit=f"{SMALL}/{{network}}/limit.npz",
        colors=f"{SMALL}/{{network}}/colors.csv",
    threads: tiny["threads"]
    params:
        **call(
            "gamma_sweep.small.limit",
            settings=classifier(f"{PREPARED} {PROBED}", step=SMALL_STEP),
            folder=rules.development_train.params.folder,
        ),


use rule gamma_sweep_analyze as gamma_sweep_small_analyze with:
    """Hierarchy, color and texture in the kernel of a small network at every localization."""
    input:
        **outputs(rules.gamma_sweep_small_limit, "colors limit"),
        kernels=expand(
            rules.gamma_sweep_small_sample.output,
            small_gamma=range(len(small["gammas"])),
            allow_missing=True,
        ),
        hierarchy=HIERARCHY,
    output:
        f"{SMALL}/{{network}}.csv",


use rule step as gamma_sweep_small_mean with:
    """The mean over networks, with its error."""
    input:
        metrics=expand(f"{SMALL_MEASURED}/{{network}}.csv", network=small["training_seeds"]),
    output:
        f"{SMALL}/metrics.csv",
    params:
        **call("gamma_sweep.analyze.mean_of_networks"),


use rule step as gamma_sweep_small_claims with:
    """What this sweep says of the paper's claims."""
    input:
        metrics=rules.gamma_sweep_small_mean.output,
    output:
        f"{SMALL}/claims.csv",
    params:
        **call(
            "gamma_sweep.claims.small",
            settings=settings("gamma_sweep.small", "training_seeds pairs"),
        ),


use rule figure_gamma_sweep as figure_gamma_sweep_small with:
    """The same of the small networks."""
    input:
        metrics=rules.gamma_sweep_small_mean.output,
    output:
        **figure("gamma_sweep_small", "2 ImageNet"),
