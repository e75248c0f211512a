"""What the control variate gains: CKA against draws, from high to low localization."""

GAIN = f"{RESULTS}/gain"
gain = config["gain"]
PROBES = range(len(gain["probes"]))


wildcard_constraints:
    probe=r"\d+",


rule gain_sample:
    """A trace with linear parts, a long run of other noise, and the limit, at one localization."""
    input:
        weights=expand(rules.arithmetic_train.output.weights, seed=arithmetic["training_seeds"][0]),
        code=code("experiments.gain.analyze.sample"),
    output:
        trace=f"{GAIN}/traces/{{probe}}.nc",
        reference=f"{GAIN}/references/{{probe}}.nc",
        limit=f"{GAIN}/limits/{{probe}}.npz",
    log:
        f"{RESULTS}/logs/gain_sample/{{probe}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/gain_sample/{{probe}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=20,
        gpu=gpus(gain["sampling"]),
    params:
        settings=settings(
            "gain",
            "probe_inputs",
            "seeds",
            "sampling",
            "reference_draws",
            network=arithmetic["network"],
            train_share=arithmetic["train_share"],
            parameters=arithmetic["groups"][gain["group"]]["parameters"],
        ),
        probe=lambda wildcards: json.dumps(gain["probes"][int(wildcards.probe)]),
        seed=arithmetic["training_seeds"][0],
    shell:
        "losskernel gain sample --settings {params.settings:q} --probe {params.probe:q} "
        "--weights {input.weights} --training-seed {params.seed} --output {output.trace} "
        "--output-reference {output.reference} --output-limit {output.limit} 2> {log}"


rule gain_measure:
    """Curves of one localization, against the exact limit and against the long run."""
    input:
        trace=rules.gain_sample.output.trace,
        reference=rules.gain_sample.output.reference,
        limit=rules.gain_sample.output.limit,
        code=code("experiments.gain.analyze.measure"),
    output:
        curve=f"{GAIN}/curves/{{probe}}.csv",
        summary=f"{GAIN}/summaries/{{probe}}.csv",
    log:
        f"{RESULTS}/logs/gain_measure/{{probe}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/gain_measure/{{probe}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=json.dumps({**gain["curve"], "seed": config["seed"]}, sort_keys=True),
    shell:
        "losskernel gain measure --name arithmetic --trace {input.trace} "
        "--reference {input.reference} --limit {input.limit} --settings {params.settings:q} "
        "--output {output.curve} --output-summary {output.summary} 2> {log}"


if imagenet["limit"]:

    rule gain_measure_imagenet:
        """Curves of half the ImageNet trace, against the exact limit and the other half."""
        input:
            trace=f"{INTERMEDIATE}/trace.nc",
            limit=f"{INTERMEDIATE}/limit.npz",
            code=code("experiments.gain.analyze.measure"),
        output:
            curve=f"{GAIN}/curves/imagenet.csv",
            summary=f"{GAIN}/summaries/imagenet.csv",
        log:
            f"{RESULTS}/logs/gain_measure/imagenet.log",
        benchmark:
            f"{RESULTS}/benchmarks/gain_measure/imagenet.tsv"
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=4000,
            runtime=30,
        params:
            settings=json.dumps({**gain["curve"], "seed": config["seed"]}, sort_keys=True),
            name=imagenet["model"],
        shell:
            "losskernel gain measure --name {params.name:q} --trace {input.trace} "
            "--limit {input.limit} --settings {params.settings:q} --output {output.curve} "
            "--output-summary {output.summary} 2> {log}"


rule gain_join:
    """All curves in one table, and what sums them up in another."""
    input:
        curves=[
            expand(rules.gain_measure.output.curve, probe=PROBES),
            rules.gain_measure_imagenet.output.curve if imagenet["limit"] else [],
        ],
        summaries=[
            expand(rules.gain_measure.output.summary, probe=PROBES),
            rules.gain_measure_imagenet.output.summary if imagenet["limit"] else [],
        ],
        code=code("experiments.gain.analyze.join"),
    output:
        curves=f"{GAIN}/curves.csv",
        summary=f"{GAIN}/summary.csv",
    log:
        f"{RESULTS}/logs/gain_join.log",
    benchmark:
        f"{RESULTS}/benchmarks/gain_join.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    shell:
        "losskernel gain join --curves {input.curves} --summaries {input.summaries} "
        "--output {output.curves} --output-summary {output.summary} 2> {log}"


rule figure_gain:
    """CKA against draws with and without the control variate; where it stops helping."""
    input:
        curves=rules.gain_join.output.curves,
        summary=rules.gain_join.output.summary,
        code=code("experiments.gain.figures.curves"),
    output:
        pdf=report(f"{FIGURES}/gain.pdf", category="4 Sampler"),
        png=f"{FIGURES}/gain.png",
    log:
        f"{RESULTS}/logs/figure_gain.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure_gain.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    shell:
        "losskernel figure-gain curves --table {input.curves} --summary {input.summary} "
        "--output {output.pdf} --output-png {output.png} 2> {log}"
