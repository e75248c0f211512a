"""Experiment 4: find wrong labels by self-covariance, on digits, against what is in use."""

MISLABEL = f"{RESULTS}/mislabel"


rule mislabel_detect:
    """Labels flipped before training: every method on the same networks, all shares and draws."""
    input:
        code=code("experiments.mislabel.detect"),
    output:
        rows=f"{MISLABEL}/detection.csv",
        summary=f"{MISLABEL}/detection_summary.csv",
        scores=f"{MISLABEL}/detection.npz",
    log:
        f"{RESULTS}/logs/mislabel_detect.log",
    benchmark:
        f"{RESULTS}/benchmarks/mislabel_detect.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        settings=settings(
            "mislabel",
            "inputs",
            "hidden_widths",
            "training",
            "shares",
            "draws",
            "folds",
            "neighbors",
            "pilot",
            "sampling",
        ),
    shell:
        "losskernel mislabel detect --settings {params.settings:q} --output {output.rows} "
        "--output-summary {output.summary} --output-scores {output.scores} 2> {log}"


rule mislabel_probe_time:
    """Clean training, labels corrupted where the losses are recorded, as in the paper."""
    input:
        code=code("experiments.mislabel.probe_time"),
    output:
        rows=f"{MISLABEL}/probe_time.csv",
        summary=f"{MISLABEL}/probe_time_summary.csv",
        scores=f"{MISLABEL}/probe_time.npz",
    log:
        f"{RESULTS}/logs/mislabel_probe_time.log",
    benchmark:
        f"{RESULTS}/benchmarks/mislabel_probe_time.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        settings=settings(
            "mislabel",
            "inputs",
            "hidden_widths",
            "training",
            "shares",
            "draws",
            "neighbors",
            "pilot",
            "sampling",
        ),
    shell:
        "losskernel mislabel probe-time --settings {params.settings:q} --output {output.rows} "
        "--output-summary {output.summary} --output-scores {output.scores} 2> {log}"


rule mislabel_copies:
    """Self-covariance against the number of copies of an input in the training set."""
    input:
        code=code("experiments.mislabel.copies"),
    output:
        rows=f"{MISLABEL}/copies.csv",
        summary=f"{MISLABEL}/copies_summary.csv",
    log:
        f"{RESULTS}/logs/mislabel_copies.log",
    benchmark:
        f"{RESULTS}/benchmarks/mislabel_copies.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        settings=settings(
            "mislabel", "inputs", "hidden_widths", "training", "draws", "sampling", "copies"
        ),
    shell:
        "losskernel mislabel copies --settings {params.settings:q} --output {output.rows} "
        "--output-summary {output.summary} 2> {log}"


rule figure_mislabel_detection:
    """AUC, precision and cost by method; self-covariances of right and wrong labels; copies."""
    input:
        summary=rules.mislabel_detect.output.summary,
        scores=rules.mislabel_detect.output.scores,
        probe_time=rules.mislabel_probe_time.output.summary,
        probe_time_scores=rules.mislabel_probe_time.output.scores,
        copies=rules.mislabel_copies.output.summary,
        code=code("figures.mislabel.detection"),
    output:
        pdf=report(f"{FIGURES}/mislabel_detection.pdf", category="4 Wrong labels"),
        png=f"{FIGURES}/mislabel_detection.png",
    log:
        f"{RESULTS}/logs/figure_mislabel_detection.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure_mislabel_detection.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    shell:
        "losskernel figure-mislabel detection --summary {input.summary} --scores {input.scores} "
        "--probe-time {input.probe_time} --probe-time-scores {input.probe_time_scores} "
        "--copies {input.copies} --output {output.pdf} --output-png {output.png} 2> {log}"
