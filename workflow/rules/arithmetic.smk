"""Experiment 1: train, sample, measure and draw multitask modular arithmetic."""

ARITHMETIC = f"{RESULTS}/arithmetic"
arithmetic = config["arithmetic"]
# The network and the group of weights that the figure shows.
FIGURED = f"{arithmetic['figure_group']}-{arithmetic['training_seeds'][0]}"


wildcard_constraints:
    seed=r"\d+",
    setup="|".join(setup["name"] for setup in arithmetic["search"]["setups"]),


use rule step as arithmetic_train with:
    """Train one network on addition and division."""
    output:
        weights=f"{ARITHMETIC}/networks/{{seed}}.safetensors",
        log=f"{ARITHMETIC}/networks/{{seed}}.json",
    log:
        log("arithmetic_train/{seed}"),
    params:
        **call(
            "arithmetic.sample.train",
            settings=settings("arithmetic", "network training train_share"),
        ),


use rule step as arithmetic_sample with:
    """Sample around one network: a trace a group of weights and seed, and the limit of each group."""
    input:
        weights=rules.arithmetic_train.output.weights,
    output:
        traces=expand(
            f"{ARITHMETIC}/traces/{{group}}-{{{{seed}}}}-{{sampling_seed}}.nc",
            group=arithmetic["groups"],
            sampling_seed=arithmetic["sampling_seeds"],
        ),
        limits=expand(f"{ARITHMETIC}/limits/{{group}}-{{{{seed}}}}.npz", group=arithmetic["groups"]),
    log:
        log("arithmetic_sample/{seed}"),
    benchmark:
        benchmark("arithmetic_sample/{seed}")
    resources:
        gpu=gpus(arithmetic["sampling"]),
    params:
        **call(
            "arithmetic.sample.sample",
            settings=settings(
                "arithmetic",
                "network train_share probe_inputs probe sampling sampling_seeds groups",
            ),
            training_seed=lambda wildcards: wildcards.seed,
        ),


use rule step as arithmetic_measure with:
    """Separation of the tasks and convergence of every trace of one network."""
    input:
        **outputs(rules.arithmetic_sample, "traces limits"),
        history=rules.arithmetic_train.output.log,
    output:
        f"{ARITHMETIC}/separation/{{seed}}.csv",
    log:
        log("arithmetic_measure/{seed}"),
    params:
        **call("arithmetic.analyze.measure"),


use rule step as arithmetic_summarize with:
    """The measurements of all networks, and their mean and spread."""
    input:
        rows=expand(rules.arithmetic_measure.output, seed=arithmetic["training_seeds"]),
    output:
        rows=f"{ARITHMETIC}/separation.csv",
        summary=f"{ARITHMETIC}/summary.csv",
    log:
        log("arithmetic_summarize"),
    params:
        **call("arithmetic.analyze.summarize"),


use rule step as arithmetic_claims with:
    """What the networks say of the paper's numbers."""
    input:
        **outputs(rules.arithmetic_summarize, "summary rows"),
    output:
        f"{ARITHMETIC}/claims.csv",
    log:
        log("arithmetic_claims"),
    params:
        **call(
            "arithmetic.analyze.claims",
            settings=settings(
                "arithmetic", "network probe groups sampling_seeds figure_group score selection"
            ),
        ),


use rule step as arithmetic_kernel with:
    """Kernel and embedding of the first network, for the figure."""
    input:
        trace=f"{ARITHMETIC}/traces/{FIGURED}-{arithmetic['sampling_seeds'][0]}.nc",
        limit=f"{ARITHMETIC}/limits/{FIGURED}.npz",
    output:
        f"{ARITHMETIC}/kernel.npz",
    log:
        log("arithmetic_kernel"),
    params:
        **call("arithmetic.analyze.kernel", settings=settings("arithmetic", "neighbors", seed=SEED)),


use rule step as figure_arithmetic_separation with:
    """Figure 3 of the paper: kernel matrix, embedding, distributions, AUC."""
    input:
        kernel=rules.arithmetic_kernel.output,
        summary=rules.arithmetic_summarize.output.summary,
    output:
        **figure("arithmetic_separation", "1 Modular arithmetic"),
    log:
        log("figure_arithmetic_separation"),
    params:
        **call("arithmetic.figures.separation"),


use rule step as arithmetic_search_setup with:
    """Every probe setting of the search around one network of one training setup."""
    output:
        f"{ARITHMETIC}/search/{{setup}}.csv",
    log:
        log("arithmetic_search/{setup}"),
    benchmark:
        benchmark("arithmetic_search/{setup}")
    resources:
        runtime=120,
        gpu=gpus(arithmetic["search"]["sampling"]),
    params:
        **call(
            "arithmetic.search.search",
            settings=settings(
                "arithmetic",
                "network training train_share probe_inputs",
                probes=arithmetic["search"]["probes"],
                groups=arithmetic["search"]["groups"],
                sampling=arithmetic["search"]["sampling"],
            ),
            setup=lambda wildcards: json.dumps(
                next(s for s in arithmetic["search"]["setups"] if s["name"] == wildcards.setup)
            ),
            seed=arithmetic["search"]["seed"],
        ),


use rule step as arithmetic_search with:
    """The whole search, beside the tracked table, which `arithmetic.search.run: true` replaces."""
    input:
        rows=expand(
            rules.arithmetic_search_setup.output,
            setup=[setup["name"] for setup in arithmetic["search"]["setups"]],
        ),
    output:
        f"{ARITHMETIC}/search.csv",
    log:
        log("arithmetic_search"),
    params:
        **call("arithmetic.search.stack"),


use rule step as figure_arithmetic_search with:
    """Heat maps of the search, from its tracked table."""
    input:
        table=(
            rules.arithmetic_search.output
            if arithmetic["search"]["run"]
            else f"{REFERENCE}/arithmetic/search.csv"
        ),
    output:
        **figure("arithmetic_search", "1 Modular arithmetic"),
    log:
        log("figure_arithmetic_search"),
    params:
        **call("arithmetic.figures.search"),
