"""Replication of "The Loss Kernel" (arXiv:2509.26537): from training to figures and the table.

snakemake --cores 8 all                                       everything
snakemake --cores 1 paper_figures/arithmetic_separation.pdf   one figure
snakemake --cores 1 compare                                   reported against reproduced
"""

from snakemake.utils import min_version

min_version("9.0")


configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/arithmetic.smk"
include: "workflow/rules/imagenet.smk"
include: "workflow/rules/imagenet_controls.smk"
include: "workflow/rules/gamma_sweep.smk"
include: "workflow/rules/gain.smk"
include: "workflow/rules/mislabel.smk"
include: "workflow/rules/development.smk"
include: "workflow/rules/gamma_sweep_small.smk"
include: "workflow/rules/compare.smk"


rule all:
    default_target: True
    input:
        figures("arithmetic_separation", "arithmetic_search"),
        figures("imagenet_map", "imagenet_kernels", "imagenet_semantics", "imagenet_lift"),
        figures("imagenet_matrix", "imagenet_convergence"),
        rules.figure_imagenet_orbit.output,
        figures("imagenet_controls") if imagenet["controls"] else [],
        rules.imagenet_neighbors.output,
        rules.imagenet_claims.output,
        figures("gamma_sweep") if sweep["include"] else [],
        figures("gamma_sweep_small") if sweep["include"] and tiny["enabled"] else [],
        figures("gain"),
        figures(*MISLABEL_FIGURES),
        rules.figure_imagenet_thumbnails.output if IMAGES else [],
        figures("development_arithmetic"),
        figures("development") if tiny["enabled"] else [],
        rules.figure_development_animation.output if tiny["enabled"] else [],
        rules.compare.output,
