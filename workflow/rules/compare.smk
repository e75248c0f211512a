"""Reported against reproduced."""

# Each experiment says what it measured of the paper's numbers and claims.
CLAIMS = [
    *rules.arithmetic_claims.output,
    *rules.imagenet_claims.output,
    *rules.mislabel_claims.output,
    *(rules.gamma_sweep_claims.output if sweep["include"] else []),
    *(rules.gamma_sweep_small_claims.output if sweep["include"] and tiny["enabled"] else []),
    *(rules.development_claims.output if tiny["enabled"] else []),
]


rule compare:
    """One row for every number and claim of the paper: `snakemake compare`."""
    input:
        claims=CLAIMS,
        code=code("experiments.comparison.table"),
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
        "losskernel compare table --claims {input.claims} "
        "--output {output} 2> {log}"
