"""How near each estimator of the kernel comes to it in a second, on experiment 1's kind of network and on
that of experiment 2. Where there are no images the tracked table is shown, and
`snakemake results/default/estimators/arithmetic/0.03.csv` computes a row of it again."""

ESTIMATED = f"{RESULTS}/estimators"
estimators = config["estimators"]


use rule step as estimators_measure with:
    """One network, at one rise of its mean loss: CKA with a reference by size, and seconds."""
    input:
        MANIFEST,
    output:
        f"{ESTIMATED}/{{estimated}}/{{rise}}.csv",
    benchmark:
        benchmark("estimators/{estimated}-{rise}")
    wildcard_constraints:
        estimated="arithmetic|imagenet",
    params:
        **call(
            "estimators.measure",
            settings=settings("estimators", loading=json.loads(loading(LOADING))),
            network=lambda wildcards: wildcards.estimated,
        ),


use rule step as estimators_table with:
    """All networks and rises."""
    input:
        rows=expand(
            rules.estimators_measure.output,
            estimated=("arithmetic", "imagenet"),
            rise=estimators["rises"],
        ),
    output:
        f"{RESULTS}/estimators.csv",
    params:
        **call("comparison.stack"),


use rule step as figure_estimators with:
    """CKA with a reference against seconds, by estimator, network and rise."""
    input:
        table=f"{REFERENCE}/estimators.csv" if IMAGES is None else rules.estimators_table.output,
    output:
        **figure("estimators", "2 ImageNet"),
    params:
        **call("estimators.figure"),
