"""Experiment 1: train, sample, measure and draw multitask modular arithmetic."""

ARITHMETIC = f"{RESULTS}/arithmetic"
arithmetic = config["arithmetic"]
# The network and the group of weights that the figure shows.
FIGURED = f"{arithmetic['figure_group']}-{arithmetic['training_seeds'][0]}"


wildcard_constraints:
    seed=r"\d+",
    setup="|".join(setup["name"] for setup in arithmetic["search"]["setups"]),


rule arithmetic_train:
    """Train one network on addition and division."""
    input:
        code=code("experiments.arithmetic.sample.train"),
    output:
        weights=f"{ARITHMETIC}/networks/{{seed}}.safetensors",
        history=f"{ARITHMETIC}/networks/{{seed}}.json",
    log:
        f"{RESULTS}/logs/arithmetic_train/{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/arithmetic_train/{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        settings=settings("arithmetic", "network", "training", "train_share"),
    shell:
        "losskernel arithmetic train --settings {params.settings:q} --seed {wildcards.seed} "
        "--output {output.weights} --output-log {output.history} 2> {log}"


rule arithmetic_sample:
    """Sample around one network: a trace a group of weights and seed, and the limit of each group."""
    input:
        weights=rules.arithmetic_train.output.weights,
        code=code("experiments.arithmetic.sample.sample"),
    output:
        traces=expand(
            f"{ARITHMETIC}/traces/{{group}}-{{{{seed}}}}-{{sampling_seed}}.nc",
            group=arithmetic["groups"],
            sampling_seed=arithmetic["sampling_seeds"],
        ),
        limits=expand(f"{ARITHMETIC}/limits/{{group}}-{{{{seed}}}}.npz", group=arithmetic["groups"]),
    log:
        f"{RESULTS}/logs/arithmetic_sample/{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/arithmetic_sample/{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=3000,
        runtime=20,
        gpu=gpus(arithmetic["sampling"]),
    params:
        settings=settings(
            "arithmetic",
            "network",
            "train_share",
            "probe_inputs",
            "probe",
            "sampling",
            "sampling_seeds",
            "groups",
        ),
    shell:
        "losskernel arithmetic sample --settings {params.settings:q} --weights {input.weights} "
        "--training-seed {wildcards.seed} --output {output.traces} "
        "--output-limits {output.limits} 2> {log}"


rule arithmetic_measure:
    """Separation of the tasks and convergence of every trace of one network."""
    input:
        traces=rules.arithmetic_sample.output.traces,
        limits=rules.arithmetic_sample.output.limits,
        history=rules.arithmetic_train.output.history,
        code=code("experiments.arithmetic.analyze.measure"),
    output:
        f"{ARITHMETIC}/separation/{{seed}}.csv",
    log:
        f"{RESULTS}/logs/arithmetic_measure/{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/arithmetic_measure/{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=20,
    shell:
        "losskernel arithmetic-separation measure --traces {input.traces} --limits {input.limits} "
        "--history {input.history} --output {output} 2> {log}"


rule arithmetic_summarize:
    """The measurements of all networks, and their mean and spread."""
    input:
        rows=expand(rules.arithmetic_measure.output, seed=arithmetic["training_seeds"]),
        code=code("experiments.arithmetic.analyze.summarize"),
    output:
        rows=f"{ARITHMETIC}/separation.csv",
        summary=f"{ARITHMETIC}/summary.csv",
    log:
        f"{RESULTS}/logs/arithmetic_summarize.log",
    benchmark:
        f"{RESULTS}/benchmarks/arithmetic_summarize.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    shell:
        "losskernel arithmetic-separation summarize --rows {input.rows} --output {output.rows} "
        "--output-summary {output.summary} 2> {log}"


rule arithmetic_claims:
    """What the networks say of the paper's numbers."""
    input:
        summary=rules.arithmetic_summarize.output.summary,
        rows=rules.arithmetic_summarize.output.rows,
        code=code("experiments.arithmetic.analyze.claims"),
    output:
        f"{ARITHMETIC}/claims.csv",
    log:
        f"{RESULTS}/logs/arithmetic_claims.log",
    benchmark:
        f"{RESULTS}/benchmarks/arithmetic_claims.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        settings=settings(
            "arithmetic",
            "network",
            "probe",
            "groups",
            "sampling_seeds",
            "figure_group",
            "score",
            "selection",
        ),
    shell:
        "losskernel arithmetic-separation claims --summary {input.summary} --rows {input.rows} "
        "--settings {params.settings:q} --output {output} 2> {log}"


rule arithmetic_kernel:
    """Kernel and embedding of the first network, for the figure."""
    input:
        trace=f"{ARITHMETIC}/traces/{FIGURED}-{arithmetic['sampling_seeds'][0]}.nc",
        limit=f"{ARITHMETIC}/limits/{FIGURED}.npz",
        code=code("experiments.arithmetic.analyze.kernel"),
    output:
        f"{ARITHMETIC}/kernel.npz",
    log:
        f"{RESULTS}/logs/arithmetic_kernel.log",
    benchmark:
        f"{RESULTS}/benchmarks/arithmetic_kernel.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=settings("arithmetic", "neighbors", seed=config["seed"]),
    shell:
        "losskernel arithmetic-separation kernel --trace {input.trace} --limit {input.limit} "
        "--settings {params.settings:q} --output {output} 2> {log}"


rule figure_arithmetic_separation:
    """Figure 3 of the paper: kernel matrix, embedding, distributions, AUC."""
    input:
        kernel=rules.arithmetic_kernel.output,
        summary=rules.arithmetic_summarize.output.summary,
        code=code("experiments.arithmetic.figures.separation"),
    output:
        pdf=report(f"{FIGURES}/arithmetic_separation.pdf", category="1 Modular arithmetic"),
        png=f"{FIGURES}/arithmetic_separation.png",
    log:
        f"{RESULTS}/logs/figure_arithmetic_separation.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure_arithmetic_separation.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    shell:
        "losskernel figure-arithmetic separation --kernel {input.kernel} "
        "--summary {input.summary} --output {output.pdf} "
        "--output-png {output.png} 2> {log}"


rule arithmetic_search_setup:
    """Every probe setting of the search around one network of one training setup."""
    input:
        code=code("experiments.arithmetic.search.search"),
    output:
        f"{ARITHMETIC}/search/{{setup}}.csv",
    log:
        f"{RESULTS}/logs/arithmetic_search/{{setup}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/arithmetic_search/{{setup}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=120,
        gpu=gpus(arithmetic["search"]["sampling"]),
    params:
        settings=settings(
            "arithmetic",
            "network",
            "training",
            "train_share",
            "probe_inputs",
            probes=arithmetic["search"]["probes"],
            groups=arithmetic["search"]["groups"],
            sampling=arithmetic["search"]["sampling"],
        ),
        seed=arithmetic["search"]["seed"],
        setup=lambda wildcards: json.dumps(
            next(s for s in arithmetic["search"]["setups"] if s["name"] == wildcards.setup)
        ),
    shell:
        "losskernel arithmetic-search search --settings {params.settings:q} --setup {params.setup:q} "
        "--seed {params.seed} --output {output} 2> {log}"


rule arithmetic_search:
    """The whole search, beside the tracked table, which `arithmetic.search.run: true` replaces."""
    input:
        rows=expand(
            rules.arithmetic_search_setup.output,
            setup=[setup["name"] for setup in arithmetic["search"]["setups"]],
        ),
        code=code("experiments.arithmetic.search.stack"),
    output:
        f"{ARITHMETIC}/search.csv",
    log:
        f"{RESULTS}/logs/arithmetic_search.log",
    benchmark:
        f"{RESULTS}/benchmarks/arithmetic_search.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    shell:
        "losskernel arithmetic-search stack --rows {input.rows} --output {output} 2> {log}"


rule figure_arithmetic_search:
    """Heat maps of the search, from its tracked table."""
    input:
        table=(
            rules.arithmetic_search.output
            if arithmetic["search"]["run"]
            else f"{REFERENCE}/arithmetic/search.csv"
        ),
        code=code("experiments.arithmetic.figures.search"),
    output:
        pdf=report(f"{FIGURES}/arithmetic_search.pdf", category="1 Modular arithmetic"),
        png=f"{FIGURES}/arithmetic_search.png",
    log:
        f"{RESULTS}/logs/figure_arithmetic_search.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure_arithmetic_search.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    shell:
        "losskernel figure-arithmetic search --table {input.table} --output {output.pdf} "
        "--output-png {output.png} 2> {log}"
