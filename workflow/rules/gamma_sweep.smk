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
SWEEP_LOADING = {key: imagenet[key] for key in LOADING} | {
    "image_folder": IMAGES,
    "max_inputs": sweep["max_inputs"],
    "seed": config["seed"],
}


wildcard_constraints:
    sweep_probe="|".join(map(re.escape, SWEEP_PROBES)),
    sweep_chain=r"\d+",


rule gamma_sweep_sample:
    """One chain of one setting; its journal survives a kill."""
    input:
        images=IMAGES or [],
        code=code("experiments.imagenet.sample.sample"),
    output:
        f"{SWEEP}/chains/{{sweep_probe}}-{{sweep_chain}}.nc",
    log:
        f"{RESULTS}/logs/gamma_sweep_sample/{{sweep_probe}}-{{sweep_chain}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/gamma_sweep_sample/{{sweep_probe}}-{{sweep_chain}}.tsv"
    conda:
        ENVIRONMENT
    threads: imagenet["threads"]
    resources:
        mem_mb=MODEL_MEMORY,
        runtime=1440,
        gpu=gpus(sweep["sampling"]),
    params:
        settings=lambda wildcards: json.dumps(
            {
                **SWEEP_LOADING,
                "probe": SWEEP_PROBES[wildcards.sweep_probe],
                "sampling": sweep["sampling"],
            },
            sort_keys=True,
        ),
        journal=f"{SWEEP}/journals/{{sweep_probe}}-{{sweep_chain}}",
    shell:
        "losskernel imagenet sample --settings {params.settings:q} --chain {wildcards.sweep_chain} "
        "--journal {params.journal} --output {output} 2> {log}"


if sweep["limit"]:

    rule gamma_sweep_gradients:
        """Loss gradients of the images of the sweep, for the exact limit and the control variate."""
        input:
            images=IMAGES or [],
            code=code("experiments.imagenet.sample.gradients"),
        output:
            temp(directory(f"{SWEEP}/gradients")),
        log:
            f"{RESULTS}/logs/gamma_sweep_gradients.log",
        benchmark:
            f"{RESULTS}/benchmarks/gamma_sweep_gradients.tsv"
        conda:
            ENVIRONMENT
        threads: imagenet["threads"]
        resources:
            mem_mb=MODEL_MEMORY,
            runtime=240,
        params:
            settings=json.dumps({**SWEEP_LOADING, "sampling": {}}, sort_keys=True),
        shell:
            "losskernel imagenet gradients --settings {params.settings:q} --output {output} 2> {log}"

    rule gamma_sweep_limit:
        """Gram matrix of the gradients: the end of the sweep at infinite gamma."""
        input:
            gradients=rules.gamma_sweep_gradients.output,
            code=code("commands.limit.gram"),
        output:
            f"{SWEEP}/limit.npz",
        log:
            f"{RESULTS}/logs/gamma_sweep_limit.log",
        benchmark:
            f"{RESULTS}/benchmarks/gamma_sweep_limit.tsv"
        conda:
            ENVIRONMENT
        threads: imagenet["threads"]
        resources:
            mem_mb=3000,
            runtime=60,
        shell:
            "losskernel limit gram --gradients {input.gradients} --output {output} 2> {log}"


rule gamma_sweep_join:
    """The chains of one setting, with the linear part of every loss where gradients are known."""
    input:
        traces=lambda wildcards: expand(
            rules.gamma_sweep_sample.output,
            sweep_probe=wildcards.sweep_probe,
            sweep_chain=SWEEP_CHAINS[wildcards.sweep_probe],
        ),
        gradients=rules.gamma_sweep_gradients.output if sweep["limit"] else [],
        code=code("experiments.imagenet.sample.join"),
    output:
        f"{SWEEP}/{{sweep_probe}}.nc",
    log:
        f"{RESULTS}/logs/gamma_sweep_join/{{sweep_probe}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/gamma_sweep_join/{{sweep_probe}}.tsv"
    conda:
        ENVIRONMENT
    threads: imagenet["threads"]
    resources:
        mem_mb=3000,
        runtime=120,
        gpu=gpus(sweep["sampling"]) if sweep["limit"] else 0,  # as imagenet_join
    params:
        journals=lambda wildcards: expand(
            rules.gamma_sweep_sample.params.journal,
            sweep_probe=wildcards.sweep_probe,
            sweep_chain=SWEEP_CHAINS[wildcards.sweep_probe],
        ),
        gradients=lambda wildcards, input: (
            f"--gradients {input.gradients}" if sweep["limit"] else ""
        ),
    shell:
        "losskernel imagenet join --traces {input.traces} --journals {params.journals} "
        "{params.gradients} --output {output} 2> {log}"


rule gamma_sweep_colors:
    """Mean color of every image: a table without a pixel in it."""
    input:
        images=IMAGES or [],
        code=code("experiments.gamma_sweep.analyze.colors"),
    output:
        f"{IMAGENET}/colors.csv",
    log:
        f"{RESULTS}/logs/gamma_sweep_colors.log",
    benchmark:
        f"{RESULTS}/benchmarks/gamma_sweep_colors.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        settings=settings("imagenet", "per_class", "skip_unreadable", image_folder=IMAGES),
    shell:
        "losskernel gamma-sweep colors --settings {params.settings:q} --output {output} 2> {log}"


rule gamma_sweep_analyze:
    """Lifts, contrasts, CKA and convergence of every setting, and their trends."""
    input:
        traces=expand(f"{SWEEP_INTERMEDIATE}/{{sweep_probe}}.nc", sweep_probe=SWEEP_PROBES),
        colors=f"{INTERMEDIATE}/colors.csv",
        limit=f"{SWEEP_INTERMEDIATE}/limit.npz" if sweep["limit"] else [],
        hierarchy=f"{REFERENCE}/imagenet/hierarchy.json",
        code=code("experiments.gamma_sweep.analyze.analyze"),
    output:
        metrics=f"{SWEEP}/metrics.csv",
        regimes=f"{SWEEP}/regimes.csv",
        trends=f"{SWEEP}/trends.csv",
        cka=f"{SWEEP}/cka.csv",
    log:
        f"{RESULTS}/logs/gamma_sweep_analyze.log",
    benchmark:
        f"{RESULTS}/benchmarks/gamma_sweep_analyze.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=3000,
        runtime=30,
    params:
        settings=json.dumps(
            {**sweep["analysis"], "base": sweep["base"], "seed": config["seed"]}, sort_keys=True
        ),
        limit=lambda wildcards, input: f"--limit {input.limit}" if sweep["limit"] else "",
    shell:
        "losskernel gamma-sweep analyze --traces {input.traces} --colors {input.colors} "
        "--hierarchy {input.hierarchy} {params.limit} --settings {params.settings:q} "
        "--output {output.metrics} --output-regimes {output.regimes} "
        "--output-trends {output.trends} --output-cka {output.cka} 2> {log}"


rule gamma_sweep_claims:
    """What the sweep says of the paper's claims."""
    input:
        metrics=rules.gamma_sweep_analyze.output.metrics,
        trends=rules.gamma_sweep_analyze.output.trends,
        regimes=rules.gamma_sweep_analyze.output.regimes,
        code=code("experiments.gamma_sweep.claims.claims"),
    output:
        f"{SWEEP}/claims.csv",
    log:
        f"{RESULTS}/logs/gamma_sweep_claims.log",
    benchmark:
        f"{RESULTS}/benchmarks/gamma_sweep_claims.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        settings=json.dumps(
            {
                **sweep["analysis"],
                "base": sweep["base"],
                "draws": sweep["sampling"]["draws"],
                "chains": sweep["sampling"]["chains"],
            },
            sort_keys=True,
        ),
    shell:
        "losskernel gamma-claims claims --metrics {input.metrics} --trends {input.trends} "
        "--regimes {input.regimes} --settings {params.settings:q} "
        "--output {output} 2> {log}"


rule figure_gamma_sweep:
    """Lifts, loss, convergence and agreement of kernels along gamma, regimes shaded."""
    input:
        metrics=rules.gamma_sweep_analyze.output.metrics,
        regimes=rules.gamma_sweep_analyze.output.regimes,
        cka=rules.gamma_sweep_analyze.output.cka,
        code=code("experiments.gamma_sweep.figures.sweep"),
    output:
        pdf=report(f"{FIGURES}/gamma_sweep.pdf", category="2 ImageNet"),
        png=f"{FIGURES}/gamma_sweep.png",
    log:
        f"{RESULTS}/logs/figure_gamma_sweep.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure_gamma_sweep.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        settings=json.dumps(
            {**sweep["analysis"], "base": sweep["base"], "draws": sweep["sampling"]["draws"]},
            sort_keys=True,
        ),
    shell:
        "losskernel figure-gamma-sweep sweep --metrics {input.metrics} --regimes {input.regimes} "
        "--cka {input.cka} --settings {params.settings:q} --output {output.pdf} "
        "--output-png {output.png} 2> {log}"
