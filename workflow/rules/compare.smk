"""Reported against reproduced."""


rule compare:
    """One row for every number and claim of the paper: `snakemake compare`."""
    input:
        reported="config/reported.csv",
        claims=[rules.arithmetic_claims.output[0]],
        imagenet=rules.imagenet_analyze.output.arrays,
        lift=rules.imagenet_analyze.output.lift,
        mislabel=rules.mislabel_probe_time.output.summary,
        detection=rules.mislabel_detect.output.summary,
        code=code("experiments.compare.table"),
    output:
        report(config["compare"], category="Reported against reproduced"),
    log:
        f"{RESULTS}/logs/compare.log",
    benchmark:
        f"{RESULTS}/benchmarks/compare.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    shell:
        "losskernel compare table --reported {input.reported} --claims {input.claims} "
        "--imagenet {input.imagenet} --imagenet-lift {input.lift} --mislabel {input.mislabel} "
        "--mislabel-detection {input.detection} "
        "--output {output} 2> {log}"
