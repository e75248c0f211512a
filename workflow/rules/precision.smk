"""Whether the losses may be computed in less precision, on the images and the model of ImageNet."""

PRECISION = f"{IMAGENET}/precision"
precision = config["precision"]


rule precision_sample:
    """One chain on fewer images, its losses in one precision, its gradients always in float32."""
    input:
        images=IMAGES or [],
        code=code("experiments.imagenet.sample.sample"),
    output:
        f"{PRECISION}/{{precision}}.nc",
    log:
        f"{RESULTS}/logs/precision_sample/{{precision}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/precision_sample/{{precision}}.tsv"
    wildcard_constraints:
        precision="float32|tf32|bfloat16",
    conda:
        ENVIRONMENT
    threads: imagenet["threads"]
    resources:
        mem_mb=MODEL_MEMORY,
        runtime=240,
        gpu=gpus(imagenet["sampling"]),
    params:
        settings=lambda wildcards: settings(
            "imagenet",
            *LOADING,
            "probe",
            image_folder=IMAGES,
            max_inputs=precision["max_inputs"],
            seed=config["seed"],
            sampling={
                **imagenet["sampling"],
                "draws": precision["draws"],
                "precision": "float32",
                "eval_precision": wildcards.precision,
            },
        ),
        journal=f"{PRECISION}/journals/{{precision}}",
    shell:
        "losskernel imagenet sample --settings {params.settings:q} --chain 0 "
        "--journal {params.journal} --output {output} 2> {log}"


rule precision_compare:
    """CKA of K and R to float32's on the same draws, by precision, and which are allowed."""
    input:
        reference=f"{PRECISION}/float32.nc",
        traces=expand(f"{PRECISION}/{{precision}}.nc", precision=precision["precisions"]),
        code=code("experiments.precision.compare"),
    output:
        f"{IMAGENET}/precision.json",
    log:
        f"{RESULTS}/logs/precision_compare.log",
    benchmark:
        f"{RESULTS}/benchmarks/precision_compare.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        threshold=precision["threshold"],
        blocks=precision["blocks"],
    shell:
        "losskernel precision compare --reference {input.reference} --traces {input.traces} "
        "--threshold {params.threshold} --blocks {params.blocks} --output {output} 2> {log}"
