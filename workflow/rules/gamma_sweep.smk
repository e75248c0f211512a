"""The localization sweep: one trace a setting of n_beta, gamma and step size, on the same images.

As in imagenet.smk, traces are sampled where there is an image folder, else their tracked copies are
read. Images, model and their settings are those of the section `imagenet`.
"""

import re

SWEEP = f"{RESULTS}/gamma_sweep"
sweep = config["gamma_sweep"]
SWEEP_INTERMEDIATE = f"{REFERENCE}/gamma_sweep" if IMAGES is None else SWEEP
SWEEP_PROBES = {
    f"nb{probe['n_beta']:g}_g{probe['gamma']:g}_e{probe['step_size']:g}": probe
    for probe in sweep["settings"]
}
SWEEP_CHAINS = {
    # Numbers of chains stand for their noise: no two settings have one in common.
    name: range(place * sweep["sampling"]["chains"], (place + 1) * sweep["sampling"]["chains"])
    for place, name in enumerate(SWEEP_PROBES)
}
SWEEP_LOADING = {"image_folder": IMAGES, "max_inputs": sweep["max_inputs"], "seed": SEED}


wildcard_constraints:
    sweep_probe="|".join(map(re.escape, SWEEP_PROBES)),
    sweep_chain=r"\d+",


use rule step as gamma_sweep_sample with:
    """One chain of one setting; its journal survives a kill."""
    input:
        IMAGES or [],
    output:
        f"{SWEEP}/chains/{{sweep_probe}}-{{sweep_chain}}.nc",
    log:
        log("gamma_sweep_sample/{sweep_probe}-{sweep_chain}"),
    benchmark:
        benchmark("gamma_sweep_sample/{sweep_probe}-{sweep_chain}")
    threads: imagenet["threads"]
    resources:
        mem_mb=MODEL_MEMORY,
        runtime=1440,
        gpu=gpus(sweep["sampling"]),
    params:
        **call(
            "imagenet.sample.sample",
            settings=lambda wildcards: settings(
                "imagenet",
                LOADING,
                **SWEEP_LOADING,
                probe=SWEEP_PROBES[wildcards.sweep_probe],
                sampling=sweep["sampling"],
            ),
            chain=lambda wildcards: wildcards.sweep_chain,
            journal=f"{SWEEP}/journals/{{sweep_probe}}-{{sweep_chain}}",
        ),


if sweep["limit"]:

    use rule step as gamma_sweep_gradients with:
        """Loss gradients of the images of the sweep, for the exact limit and the control variate."""
        input:
            IMAGES or [],
        output:
            temp(directory(f"{SWEEP}/gradients")),
        log:
            log("gamma_sweep_gradients"),
        threads: imagenet["threads"]
        resources:
            mem_mb=MODEL_MEMORY,
            runtime=240,
        params:
            **call(
                "imagenet.sample.gradients",
                settings=settings("imagenet", LOADING, **SWEEP_LOADING, sampling={}),
            ),

    use rule step as gamma_sweep_limit with:
        """Gram matrix of the gradients: the end of the sweep at infinite gamma."""
        input:
            gradients=rules.gamma_sweep_gradients.output,
        output:
            f"{SWEEP}/limit.npz",
        log:
            log("gamma_sweep_limit"),
        threads: imagenet["threads"]
        params:
            **call("commands.limit.gram"),


use rule step as gamma_sweep_join with:
    """The chains of one setting, with the linear part of every loss where gradients are known."""
    input:
        traces=lambda wildcards: expand(
            rules.gamma_sweep_sample.output,
            sweep_probe=wildcards.sweep_probe,
            sweep_chain=SWEEP_CHAINS[wildcards.sweep_probe],
        ),
        gradients=rules.gamma_sweep_gradients.output if sweep["limit"] else [],
    output:
        f"{SWEEP}/{{sweep_probe}}.nc",
    log:
        log("gamma_sweep_join/{sweep_probe}"),
    threads: imagenet["threads"]
    resources:
        runtime=120,
        gpu=gpus(sweep["sampling"]) if sweep["limit"] else 0,  # as imagenet_join
    params:
        **call(
            "imagenet.sample.join",
            journals=lambda wildcards: expand(
                rules.gamma_sweep_sample.params.journal,
                sweep_probe=wildcards.sweep_probe,
                sweep_chain=SWEEP_CHAINS[wildcards.sweep_probe],
            ),
        ),


use rule step as gamma_sweep_colors with:
    """Mean color of every image: a table without a pixel in it."""
    input:
        IMAGES or [],
    output:
        f"{IMAGENET}/colors.csv",
    log:
        log("gamma_sweep_colors"),
    params:
        **call(
            "gamma_sweep.analyze.colors",
            settings=settings("imagenet", "per_class skip_unreadable", image_folder=IMAGES),
        ),


use rule step as gamma_sweep_analyze with:
    """Lifts, contrasts, CKA and convergence of every setting, and their trends."""
    input:
        traces=expand(f"{SWEEP_INTERMEDIATE}/{{sweep_probe}}.nc", sweep_probe=SWEEP_PROBES),
        colors=f"{INTERMEDIATE}/colors.csv",
        limit=f"{SWEEP_INTERMEDIATE}/limit.npz" if sweep["limit"] else [],
        hierarchy=HIERARCHY,
    output:
        metrics=f"{SWEEP}/metrics.csv",
        regimes=f"{SWEEP}/regimes.csv",
        trends=f"{SWEEP}/trends.csv",
        cka=f"{SWEEP}/cka.csv",
    log:
        log("gamma_sweep_analyze"),
    params:
        **call(
            "gamma_sweep.analyze.analyze",
            settings=settings("gamma_sweep.analysis", base=sweep["base"], seed=SEED),
        ),


use rule step as gamma_sweep_claims with:
    """What the sweep says of the paper's claims."""
    input:
        metrics=rules.gamma_sweep_analyze.output.metrics,
        trends=rules.gamma_sweep_analyze.output.trends,
        regimes=rules.gamma_sweep_analyze.output.regimes,
    output:
        f"{SWEEP}/claims.csv",
    log:
        log("gamma_sweep_claims"),
    params:
        **call(
            "gamma_sweep.claims.claims",
            settings=settings(
                "gamma_sweep.analysis",
                base=sweep["base"],
                draws=sweep["sampling"]["draws"],
                chains=sweep["sampling"]["chains"],
            ),
        ),


use rule step as figure_gamma_sweep with:
    """Lifts, loss, convergence and agreement of kernels along gamma, regimes shaded."""
    input:
        metrics=rules.gamma_sweep_analyze.output.metrics,
        regimes=rules.gamma_sweep_analyze.output.regimes,
        cka=rules.gamma_sweep_analyze.output.cka,
    output:
        **figure("gamma_sweep", "2 ImageNet"),
    log:
        log("figure_gamma_sweep"),
    params:
        **call(
            "gamma_sweep.figures.sweep",
            settings=settings(
                "gamma_sweep.analysis", base=sweep["base"], draws=sweep["sampling"]["draws"]
            ),
        ),
