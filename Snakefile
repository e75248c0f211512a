# So that `snakemake --cores 8 all` works in this folder; everything is in workflow/.
include: "workflow/Snakefile"
