"""The localization sweep on the small network of the development experiment, at its last checkpoint.

As there, traces are sampled where there is an archive of images, else their tracked copies are read.
"""

small = sweep["small"]
SMALL = f"{SWEEP}/small"
SMALL_INTERMEDIATE = f"{REFERENCE}/gamma_sweep/small" if tiny["archive"] is None else SMALL
SMALL_STEP = max(tiny["checkpoints"])
SMALL_PROBLEM = {
    key: tiny[key]
    for key in (*PREPARED, "gradient_per_class", "probe_per_class", "calibration_batches")
} | {"step": SMALL_STEP}
SMALL_FOLDER = expand(rules.development_train.params.folder, network=small["training_seed"])[0]


wildcard_constraints:
    small_gamma=r"\d+",


rule gamma_sweep_small_sample:
    """The chains of one gamma; their journal survives a kill."""
    input:
        archive=TINY_ARCHIVE or [],
        history=expand(rules.development_train.output, network=small["training_seed"]),
        code=code("experiments.gamma_sweep.small.sample"),
    output:
        f"{SMALL}/{{small_gamma}}.nc",
    log:
        f"{RESULTS}/logs/gamma_sweep_small_sample/{{small_gamma}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/gamma_sweep_small_sample/{{small_gamma}}.tsv"
    conda:
        ENVIRONMENT
    threads: tiny["threads"]
    resources:
        mem_mb=4000,
        runtime=240,
        gpu=gpus(small["sampling"]),
    params:
        settings=json.dumps({**SMALL_PROBLEM, **small, "seed": config["seed"]}, sort_keys=True),
        folder=SMALL_FOLDER,
        journal=f"{SMALL}/journals/{{small_gamma}}",
    shell:
        "losskernel gamma-sweep-small sample --settings {params.settings:q} "
        "--archive {input.archive} --folder {params.folder} --number {wildcards.small_gamma} "
        "--journal {params.journal} --output {output} 2> {log}"


rule gamma_sweep_small_limit:
    """Gram matrix of the loss gradients of the same inputs, and their mean colors."""
    input:
        archive=TINY_ARCHIVE or [],
        history=expand(rules.development_train.output, network=small["training_seed"]),
        code=code("experiments.gamma_sweep.small.limit"),
    output:
        limit=f"{SMALL}/limit.npz",
        colors=f"{SMALL}/colors.csv",
    log:
        f"{RESULTS}/logs/gamma_sweep_small_limit.log",
    benchmark:
        f"{RESULTS}/benchmarks/gamma_sweep_small_limit.tsv"
    conda:
        ENVIRONMENT
    threads: tiny["threads"]
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        settings=json.dumps(SMALL_PROBLEM, sort_keys=True),
        folder=SMALL_FOLDER,
    shell:
        "losskernel gamma-sweep-small limit --settings {params.settings:q} "
        "--archive {input.archive} --folder {params.folder} --output {output.limit} "
        "--output-colors {output.colors} 2> {log}"


rule gamma_sweep_small_analyze:
    """Lifts, contrasts, CKA and convergence at every gamma, and their trends."""
    input:
        traces=expand(f"{SMALL_INTERMEDIATE}/{{number}}.nc", number=range(len(small["gammas"]))),
        colors=f"{SMALL_INTERMEDIATE}/colors.csv",
        limit=f"{SMALL_INTERMEDIATE}/limit.npz",
        hierarchy=f"{REFERENCE}/imagenet/hierarchy.json",
        code=code("experiments.gamma_sweep.analyze.analyze"),
    output:
        metrics=f"{SMALL}/metrics.csv",
        regimes=f"{SMALL}/regimes.csv",
        trends=f"{SMALL}/trends.csv",
        cka=f"{SMALL}/cka.csv",
    log:
        f"{RESULTS}/logs/gamma_sweep_small_analyze.log",
    benchmark:
        f"{RESULTS}/benchmarks/gamma_sweep_small_analyze.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=3000,
        runtime=30,
    params:
        settings=json.dumps(
            {
                **sweep["analysis"],
                "base": {"n_beta": small["n_beta"], "gamma": 0, "step_size": 0},
                "seed": config["seed"],
            },
            sort_keys=True,
        ),
    shell:
        "losskernel gamma-sweep analyze --traces {input.traces} --colors {input.colors} "
        "--hierarchy {input.hierarchy} --limit {input.limit} --settings {params.settings:q} "
        "--output {output.metrics} --output-regimes {output.regimes} "
        "--output-trends {output.trends} --output-cka {output.cka} 2> {log}"


rule gamma_sweep_small_claims:
    """What this sweep says of the paper's claims."""
    input:
        metrics=rules.gamma_sweep_small_analyze.output.metrics,
        trends=rules.gamma_sweep_small_analyze.output.trends,
        regimes=rules.gamma_sweep_small_analyze.output.regimes,
        code=code("experiments.gamma_sweep.claims.small"),
    output:
        f"{SMALL}/claims.csv",
    log:
        f"{RESULTS}/logs/gamma_sweep_small_claims.log",
    benchmark:
        f"{RESULTS}/benchmarks/gamma_sweep_small_claims.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        settings=json.dumps(
            {
                **{key: sweep["analysis"][key] for key in ("neighbors", "discard")},
                **{key: small[key] for key in ("training_seed", "n_beta", "relaxation")},
                **{key: small["sampling"][key] for key in ("chains", "draws")},
            },
            sort_keys=True,
        ),
    shell:
        "losskernel gamma-claims small --metrics {input.metrics} --trends {input.trends} "
        "--regimes {input.regimes} --settings {params.settings:q} --output {output} 2> {log}"


rule figure_gamma_sweep_small:
    """Lifts by hierarchy and by color, and the mean loss, along gamma."""
    input:
        metrics=rules.gamma_sweep_small_analyze.output.metrics,
        regimes=rules.gamma_sweep_small_analyze.output.regimes,
        code=code("experiments.gamma_sweep.figures.small"),
    output:
        pdf=report(f"{FIGURES}/gamma_sweep_small.pdf", category="2 ImageNet"),
        png=f"{FIGURES}/gamma_sweep_small.png",
    log:
        f"{RESULTS}/logs/figure_gamma_sweep_small.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure_gamma_sweep_small.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        settings=json.dumps(sweep["analysis"], sort_keys=True),
    shell:
        "losskernel figure-gamma-sweep small --metrics {input.metrics} --regimes {input.regimes} "
        "--settings {params.settings:q} --output {output.pdf} --output-png {output.png} 2> {log}"
