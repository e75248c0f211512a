"""The kernels of imagenet.smk along the localization: hierarchy, color, texture, rise."""

SWEEP = f"{RESULTS}/gamma_sweep"
sweep = config["gamma_sweep"]


use rule step as gamma_sweep_colors with:
    """Mean color and texture of every image: a table without a pixel in it."""
    input:
        manifest=MANIFEST,
    output:
        f"{IMAGENET}/colors.csv",
    params:
        **call(
            "gamma_sweep.analyze.colors",
            settings=settings("imagenet", "per_class skip_unreadable", image_folder=IMAGES),
        ),


use rule step as gamma_sweep_analyze with:
    """Hierarchy, color and texture in the kernel at every localization, and how they change along it."""
    input:
        kernels=expand(f"{INTERMEDIATE}/kernels/{{gamma}}.npz", gamma=SWEPT),
        colors=f"{INTERMEDIATE}/colors.csv",
        limit=KERNELS["limit"],
        hierarchy=HIERARCHY,
    output:
        f"{SWEEP}/metrics.csv",
    params:
        **call("gamma_sweep.analyze.analyze", settings=settings("gamma_sweep.analysis", seed=SEED)),


use rule step as gamma_sweep_claims with:
    """What the sweep says of the paper's claims."""
    input:
        metrics=rules.gamma_sweep_analyze.output,
    output:
        f"{SWEEP}/claims.csv",
    params:
        **call("gamma_sweep.claims.claims", settings=json.dumps({"model": imagenet["model"]})),


use rule step as figure_gamma_sweep with:
    """What R follows along gamma, neighbors, mean R by depth, distance from the linear limit."""
    input:
        metrics=rules.gamma_sweep_analyze.output,
    output:
        **figure("gamma_sweep", "2 ImageNet"),
    params:
        **call("gamma_sweep.figures.sweep"),
