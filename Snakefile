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
include: "workflow/rules/mislabel.smk"
include: "workflow/rules/compare.smk"


rule all:
    default_target: True
    input:
        figures("arithmetic_separation", "arithmetic_search"),
        figures("imagenet_map", "imagenet_matrix", "imagenet_lift", "imagenet_convergence"),
        figures("mislabel_detection"),
        rules.figure_imagenet_thumbnails.output if IMAGES else [],
        rules.compare.output,
