"""Reported against reproduced."""

# Each experiment says what it measured of the paper's numbers and claims.
CLAIMS = [
    *rules.arithmetic_claims.output,
    *rules.arithmetic_question_claims.output,
    *rules.imagenet_claims.output,
    *(expand(rules.architecture_claims.output, images=COMPARED) if COMPARED else []),
    *rules.mislabel_claims.output,
    *(rules.gamma_sweep_claims.output if sweep["include"] else []),
    *(rules.gamma_sweep_small_claims.output if sweep["include"] and tiny["enabled"] else []),
    *(rules.development_claims.output if tiny["enabled"] else []),
    *(rules.scale_claims.output if scale["include"] and tiny["enabled"] else []),
]


use rule step as compare with:
    """One row for every number and claim of the paper: `snakemake compare`."""
    input:
        claims=CLAIMS,
    output:
        report(config["compare"], category="Reported against reproduced"),
    params:
        **call("comparison.table"),
