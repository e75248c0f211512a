# So that `snakemake --cores 8 all` works in this folder; everything is in workflow/.
include: "workflow/Snakefile"


# A rule of an included file is not taken for the default otherwise.
workflow.default_target = "all"
