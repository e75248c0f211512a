"""The Laplace form of the tempered posterior against long chains; its table is tracked."""

LAPLACE = f"{RESULTS}/laplace"
laplace = config["laplace"]


use rule step as laplace_compare with:
    """One network, at one rise of its mean loss."""
    output:
        f"{LAPLACE}/{{small_network}}/{{rise}}.csv",
    wildcard_constraints:
        small_network="arithmetic|digits",
        rise=r"[\d.]+",
    params:
        **call(
            "laplace.compare",
            settings=settings(
                "laplace", digits=laplace["digits"] | {"training": config["mislabel"]["training"]}
            ),
            network=lambda wildcards: wildcards.small_network,
            rise=lambda wildcards: wildcards.rise,
        ),


use rule step as laplace_table with:
    """All networks and rises: `snakemake results/default/laplace.csv`."""
    input:
        rows=[
            f"{LAPLACE}/{network}/{rise}.csv"
            for network in ("arithmetic", "digits")
            for rise in laplace[network]["rises"]
        ],
    output:
        f"{RESULTS}/laplace.csv",
    params:
        **call("comparison.stack"),
