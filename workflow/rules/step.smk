"""What every rule is made from: its software and its command."""


rule step:
    """A call of one function of losskernel: every rule is `use rule step as ... with` its own."""

    # Software of every rule, for `--software-deployment-method conda`; relative to the rules.
    conda:
        "../../envs/environment.yaml"
    params:
        call="losskernel workflow --help",
    shell:
        "{params.call} 2> {log:q}"
