"""Experiment 1: train, sample, measure and draw multitask modular arithmetic."""

ARITHMETIC = f"{RESULTS}/arithmetic"
arithmetic = config["arithmetic"]
search = arithmetic["search"]
SETUPS = {setup["name"]: json.dumps(setup) for setup in search["setups"]}
SEEDS = arithmetic["training_seeds"]
FIGURED = SEEDS[0]  # the network that the figure shows
modular = partial(settings, "arithmetic")


wildcard_constraints:
    seed=r"\d+",
    setup="|".join(SETUPS),


use rule step as arithmetic_train with:
    """Train one network on addition and division."""
    output:
        weights=f"{ARITHMETIC}/networks/{{seed}}.safetensors",
        log=f"{ARITHMETIC}/networks/{{seed}}.json",
    params:
        **call("arithmetic.sample.train", settings=modular("network training train_share")),


use rule step as arithmetic_sample with:
    """Draw the losses around one network."""
    input:
        weights=rules.arithmetic_train.output.weights,
    output:
        f"{ARITHMETIC}/traces/{{seed}}.nc",
    benchmark:
        benchmark("arithmetic_sample/{seed}")
    params:
        **call(
            "arithmetic.sample.sample",
            settings=modular(
                "network train_share probe_inputs rise directions chains draws sampling_seed"
            ),
        ),


use rule step as arithmetic_baselines with:
    """Other similarities of the inputs of one network."""
    input:
        weights=rules.arithmetic_train.output.weights,
    output:
        f"{ARITHMETIC}/baselines/{{seed}}.npz",
    params:
        **call(
            "arithmetic.sample.baselines",
            settings=modular(
                "network train_share probe_inputs rise directions untrained_draws sampling_seed",
                gradient_groups={
                    name: arithmetic["groups"][name] for name in arithmetic["gradient_groups"]
                },
            ),
        ),


use rule step as arithmetic_curve with:
    """Separation along gamma, for each group of weights of the first network."""
    input:
        weights=expand(rules.arithmetic_train.output.weights, seed=FIGURED),
    output:
        f"{ARITHMETIC}/curve.csv",
    benchmark:
        benchmark("arithmetic_curve")
    params:
        **call(
            "arithmetic.sample.curve",
            settings=modular("network train_share groups sampling_seed", **arithmetic["curve"]),
            seed=FIGURED,
        ),


use rule step as arithmetic_measure with:
    """Separation of the tasks, and what is confused, of every network."""
    input:
        traces=expand(rules.arithmetic_sample.output, seed=SEEDS),
        baselines=expand(rules.arithmetic_baselines.output, seed=SEEDS),
        histories=expand(rules.arithmetic_train.output.log, seed=SEEDS),
    output:
        f"{ARITHMETIC}/networks.csv",
    params:
        **call("arithmetic.analyze.measure", settings=modular("triples", seed=SEED)),


use rule step as arithmetic_reparametrize with:
    """The kernel of one network after rescalings that leave its function as it is."""
    input:
        weights=rules.arithmetic_train.output.weights,
    output:
        f"{ARITHMETIC}/reparametrization/{{seed}}.csv",
    params:
        **call(
            "arithmetic.reparametrization.reparametrize",
            settings=modular(
                "network train_share probe_inputs rise directions",
                **arithmetic["reparametrization"],
            ),
        ),


use rule step as arithmetic_localize with:
    """Kernels of networks whose parameters are split between the tasks, of one seed."""
    output:
        f"{ARITHMETIC}/localization/{{seed}}.csv",
    params:
        **call(
            "arithmetic.localization.localize",
            settings=modular("rise directions", **arithmetic["localization"]),
        ),


use rule step as arithmetic_question_claims with:
    """What is left open by the paper: localization and reparametrization."""
    input:
        localization=expand(
            rules.arithmetic_localize.output, seed=arithmetic["localization"]["training_seeds"]
        ),
        reparametrization=expand(
            rules.arithmetic_reparametrize.output,
            seed=SEEDS[: arithmetic["reparametrization"]["networks"]],
        ),
    output:
        f"{ARITHMETIC}/question_claims.csv",
    params:
        **call("arithmetic.questions.claims"),


use rule step as figure_arithmetic_questions with:
    """Localization, reparametrization, triples, and weights against activations."""
    input:
        localization=rules.arithmetic_question_claims.input.localization,
        reparametrization=rules.arithmetic_question_claims.input.reparametrization,
        networks=rules.arithmetic_measure.output,
        curve=rules.arithmetic_curve.output,
        development=f"{RESULTS}/development/arithmetic.csv",
    output:
        **figure("arithmetic_questions", "1 Modular arithmetic"),
    params:
        **call("arithmetic.questions.figure"),


use rule step as arithmetic_claims with:
    """What the networks say of the paper's numbers."""
    input:
        networks=rules.arithmetic_measure.output,
    output:
        f"{ARITHMETIC}/claims.csv",
    params:
        **call("arithmetic.analyze.claims", settings=modular("network rise")),


use rule step as arithmetic_kernel with:
    """Kernel and embedding of the first network, for the figure."""
    input:
        trace=expand(rules.arithmetic_sample.output, seed=FIGURED),
    output:
        f"{ARITHMETIC}/kernel.npz",
    params:
        **call("arithmetic.analyze.kernel", settings=modular("neighbors", seed=SEED)),


use rule step as figure_arithmetic_separation with:
    """Figure 3 of the paper: kernel matrix, embedding, R by relation, AUC."""
    input:
        kernel=rules.arithmetic_kernel.output,
        networks=rules.arithmetic_measure.output,
        curve=rules.arithmetic_curve.output,
    output:
        **figure("arithmetic_separation", "1 Modular arithmetic"),
    params:
        **call("arithmetic.figures.separation"),


use rule step as arithmetic_search_setup with:
    """Separation by the networks of one training recipe."""
    output:
        f"{ARITHMETIC}/search/{{setup}}.csv",
    benchmark:
        benchmark("arithmetic_search/{setup}")
    params:
        **call(
            "arithmetic.search.search",
            settings=modular(
                "network training train_share directions",
                **{name: search[name] for name in ("probe_inputs", "draws", "rises")},
            ),
            setup=lambda wildcards: SETUPS[wildcards.setup],
        ),


use rule step as arithmetic_search with:
    """The whole search, beside the tracked table, which `arithmetic.search.run: true` replaces."""
    input:
        rows=expand(rules.arithmetic_search_setup.output, setup=SETUPS),
    output:
        f"{ARITHMETIC}/search.csv",
    params:
        **call("comparison.stack"),


use rule step as figure_arithmetic_search with:
    """The search over training recipes, from its tracked table."""
    input:
        table=(
            rules.arithmetic_search.output
            if search["run"]
            else f"{REFERENCE}/arithmetic/search.csv"
        ),
    output:
        **figure("arithmetic_search", "1 Modular arithmetic"),
    params:
        **call("arithmetic.figures.search"),
