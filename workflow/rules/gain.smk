"""What the control variate gains: CKA against draws, from high to low localization."""

GAIN = f"{RESULTS}/gain"
gain = config["gain"]
PROBES = range(len(gain["probes"]))


wildcard_constraints:
    probe=r"\d+",


use rule step as gain_sample with:
    """A trace with linear parts, a long run of other noise, and the limit, at one localization."""
    input:
        weights=expand(rules.arithmetic_train.output.weights, seed=arithmetic["training_seeds"][0]),
    output:
        trace=f"{GAIN}/traces/{{probe}}.nc",
        reference=f"{GAIN}/references/{{probe}}.nc",
        limit=f"{GAIN}/limits/{{probe}}.npz",
    log:
        log("gain_sample/{probe}"),
    benchmark:
        benchmark("gain_sample/{probe}")
    resources:
        gpu=gpus(gain["sampling"]),
    params:
        **call(
            "gain.analyze.sample",
            settings=settings(
                "gain",
                "probe_inputs seeds sampling reference_draws",
                network=arithmetic["network"],
                train_share=arithmetic["train_share"],
                parameters=arithmetic["groups"][gain["group"]]["parameters"],
            ),
            probe=lambda wildcards: json.dumps(gain["probes"][int(wildcards.probe)]),
            training_seed=arithmetic["training_seeds"][0],
        ),


use rule step as gain_measure with:
    """Curves of one localization, against the exact limit and against the long run."""
    input:
        trace=rules.gain_sample.output.trace,
        reference=rules.gain_sample.output.reference,
        limit=rules.gain_sample.output.limit,
    output:
        curve=f"{GAIN}/curves/{{probe}}.csv",
        summary=f"{GAIN}/summaries/{{probe}}.csv",
    log:
        log("gain_measure/{probe}"),
    params:
        **call(
            "gain.analyze.measure", name="arithmetic", settings=settings("gain.curve", seed=SEED)
        ),


if imagenet["limit"]:

    use rule step as gain_measure_imagenet with:
        """Curves of half the ImageNet trace, against the exact limit and the other half."""
        input:
            trace=f"{INTERMEDIATE}/trace.nc",
            limit=f"{INTERMEDIATE}/limit.npz",
        output:
            curve=f"{GAIN}/curves/imagenet.csv",
            summary=f"{GAIN}/summaries/imagenet.csv",
        log:
            log("gain_measure/imagenet"),
        params:
            **call(
                "gain.analyze.measure",
                name=imagenet["model"],
                settings=settings("gain.curve", seed=SEED),
            ),


use rule step as gain_join with:
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
    output:
        curves=f"{GAIN}/curves.csv",
        summary=f"{GAIN}/summary.csv",
    log:
        log("gain_join"),
    params:
        **call("gain.analyze.join"),


use rule step as figure_gain with:
    """CKA against draws with and without the control variate; where it stops helping."""
    input:
        table=rules.gain_join.output.curves,
        summary=rules.gain_join.output.summary,
    output:
        **figure("gain", "4 Sampler"),
    log:
        log("figure_gain"),
    params:
        **call("gain.figures.curves"),
