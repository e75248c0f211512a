"""The kernel of several networks on the same images, and how far networks agree.

Two sets of images. Those of experiment 2: a network is one entry of `architecture.networks`. As in
imagenet.smk its kernel is computed where there are images, from weights that the entry names, else its
tracked copy is read. Where there are images and no weights, the network is left out. And validation images
of Tiny ImageNet: networks are trained by the rules of development.smk, that of development itself among
them, where there is its archive, else the tracked copies are read.
"""

ARCHITECTURE = f"{RESULTS}/architecture"
NETWORKS = {
    name: network
    for name, network in config["architecture"]["networks"].items()
    if IMAGES is None or network["weights"]
}
on_tiny = config["architecture"]["tiny_imagenet"]
# Of each network on Tiny ImageNet, how its files of training are called, its options and its training.
TRAINED = {
    name: {
        "trained_as": name,
        "network": own["network"],
        "training": tiny["training"] | own["training"],
    }
    for name, own in on_tiny["networks"].items()
}
if TRAINED and tiny["enabled"]:
    first = {
        "trained_as": str(on_tiny["training_seed"]),
        "network": tiny["network"],
        "training": tiny["training"],
    }
    TRAINED = {"inception_tiny": first, **TRAINED}
else:
    TRAINED = {}
# The network that the others are set beside first: that of experiment 2, and that of development.
COMPARED = {
    name: networks
    for name, networks in {
        "imagenet": [imagenet["model"], *NETWORKS],
        "tiny_imagenet": [*TRAINED],
    }.items()
    if len(networks) > 1
}
# Where there is an intermediate file of each network, or its tracked copy.
tracked_or = lambda source: (f"{REFERENCE}/architecture" if source is None else ARCHITECTURE)
NETWORK_FOLDERS = {name: f"{tracked_or(IMAGES)}/{name}" for name in NETWORKS}
NETWORK_FOLDERS |= {name: f"{tracked_or(tiny['archive'])}/{name}" for name in TRAINED}
ARCHITECTURE_SETTINGS = settings(
    "imagenet.analysis",
    "claim_neighbors claim_depth permutations",
    gammas={imagenet["model"]: HEADLINE}
    | {name: network["gamma"] for name, network in NETWORKS.items()},
    seed=SEED,
)


wildcard_constraints:
    network_name="|".join(NETWORKS) or "none",
    trained_name="|".join(TRAINED) or "none",
    analyzed_name="|".join(NETWORK_FOLDERS) or "none",
    images="|".join(COMPARED) or "none",


NETWORK_SETTINGS = {
    name: loading(
        LOADING,
        **PAIRED,
        **{key: network[key] for key in ("model", "weights", "image_size")},
    )
    for name, network in NETWORKS.items()
}
network_settings = lambda wildcards: NETWORK_SETTINGS[wildcards.network_name]


use rule imagenet_kernel as architecture_kernel with:
    """The kernel of one network from gradients at pairs of draws; its journal survives a kill."""
    output:
        f"{ARCHITECTURE}/{{network_name}}/kernel.npz",
    benchmark:
        benchmark("architecture_kernel/{network_name}")
    params:
        **call(
            "imagenet.sample.kernel",
            settings=network_settings,
            gamma=lambda wildcards: NETWORKS[wildcards.network_name]["gamma"],
            pairs=lambda wildcards: NETWORKS[wildcards.network_name]["pairs"],
            groups=lambda wildcards: NETWORKS[wildcards.network_name]["groups"],
            journal=f"{ARCHITECTURE}/{{network_name}}/journal",
        ),


use rule imagenet_features as architecture_features with:
    """Penultimate features of one network."""
    output:
        f"{ARCHITECTURE}/{{network_name}}/features.npz",
    params:
        **call("imagenet.sample.features", settings=network_settings),


use rule imagenet_features as architecture_evaluate with:
    """Accuracy of one network before any perturbation."""
    output:
        f"{ARCHITECTURE}/{{network_name}}/accuracy.json",
    params:
        **call("imagenet.sample.evaluate", settings=network_settings),


trained_settings = lambda name, keys, **options: classifier(
    f"image_size crop device {keys}",
    **{key: TRAINED[name][key] for key in ("network", "training")},
    **options,
)
last_step = lambda name: max(
    tiny["checkpoints"] if name == "inception_tiny" else [TRAINED[name]["training"]["steps"]]
)


use rule development_train as architecture_train with:
    """Train a network of another architecture as that of development is trained."""
    output:
        f"{DEVELOPMENT}/networks/{{trained_name}}.csv",
    params:
        **call(
            "development.sample.train",
            settings=lambda wildcards: trained_settings(
                wildcards.trained_name,
                "train_per_class save_every",
                checkpoints=[last_step(wildcards.trained_name)],
            ),
            seed=on_tiny["training_seed"],
            shuffled=False,
            folder=f"{DEVELOPMENT}/checkpoints/{{trained_name}}",
        ),


use rule step as architecture_sample with:
    """Kernel, features and accuracy of one of these networks; the journal survives a kill."""
    input:
        lambda wildcards: f"{DEVELOPMENT}/networks/{TRAINED[wildcards.trained_name]['trained_as']}.csv",
        archive=TINY_ARCHIVE or [],
    output:
        kernel=f"{ARCHITECTURE}/{{trained_name}}/kernel.npz",
        features=f"{ARCHITECTURE}/{{trained_name}}/features.npz",
        accuracy=f"{ARCHITECTURE}/{{trained_name}}/accuracy.json",
    benchmark:
        benchmark("architecture_sample/{trained_name}")
    threads: tiny["threads"]
    resources:
        runtime=240,
        gpu=gpus(tiny),
    params:
        **call(
            "architecture.sample.sample",
            settings=lambda wildcards: trained_settings(
                wildcards.trained_name,
                "calibration_per_class probe_per_class sampling_seed",
                step=last_step(wildcards.trained_name),
                **{key: on_tiny[key] for key in ("rise", "pairs", "groups", "width")},
            ),
            folder=lambda wildcards: (
                f"{DEVELOPMENT}/checkpoints/{TRAINED[wildcards.trained_name]['trained_as']}"
            ),
            journal=f"{ARCHITECTURE}/{{trained_name}}/journal",
        ),


use rule step as architecture_analyze with:
    """Lift and correlation with WordNet of one network, as imagenet_analyze has them."""
    input:
        kernels=lambda wildcards: f"{NETWORK_FOLDERS[wildcards.analyzed_name]}/kernel.npz",
        features=lambda wildcards: f"{NETWORK_FOLDERS[wildcards.analyzed_name]}/features.npz",
        hierarchy=HIERARCHY,
    output:
        arrays=temp(f"{ARCHITECTURE}/{{analyzed_name}}/analysis.npz"),
        statistics=f"{ARCHITECTURE}/{{analyzed_name}}/statistics.csv",
        headline=f"{ARCHITECTURE}/{{analyzed_name}}/headline.csv",
    params:
        **call(
            "imagenet.analyze.analyze",
            settings=settings(
                "imagenet.analysis",
                "claim_neighbors claim_depth map_neighbors permutations",
                lift_neighbors=[imagenet["analysis"]["claim_neighbors"]],
                cluster_depths=[],
                headline=None,  # there is one kernel
                seed=SEED,
            ),
        ),


if COMPARED:
    # Files of each network.
    OF_NETWORK = {
        name: {
            "kernels": f"{folder}/kernel.npz",
            "features": f"{folder}/features.npz",
            "accuracies": f"{folder}/accuracy.json",
            "statistics": f"{ARCHITECTURE}/{name}/statistics.csv",
            "headlines": f"{ARCHITECTURE}/{name}/headline.csv",
        }
        for name, folder in NETWORK_FOLDERS.items()
    }
    OF_NETWORK[imagenet["model"]] = {
        "kernels": f"{INTERMEDIATE}/kernels/{HEADLINE:g}.npz",
        "features": KERNELS["features"],
        "accuracies": f"{INTERMEDIATE}/accuracy.json",
        "statistics": rules.imagenet_analyze.output.statistics,
        "headlines": rules.imagenet_analyze.output.headline,
    }
    compared = lambda kind: lambda wildcards: [
        OF_NETWORK[name][kind] for name in COMPARED[wildcards.images]
    ]
    names_of = lambda wildcards: COMPARED[wildcards.images]

    use rule step as architecture_agreement with:
        """CKA of networks on one set of images by kernels and by features, without noise."""
        input:
            kernels=compared("kernels"),
            features=compared("features"),
        output:
            f"{ARCHITECTURE}/agreement/{{images}}.csv",
        params:
            **call("architecture.analyze.agreement", names=names_of, settings=ARCHITECTURE_SETTINGS),

    use rule step as architecture_claims with:
        """What each network says of the kernel and the hierarchy."""
        input:
            headlines=compared("headlines"),
            accuracies=compared("accuracies"),
            agreement=rules.architecture_agreement.output,
        output:
            f"{ARCHITECTURE}/claims/{{images}}.csv",
        params:
            **call("architecture.analyze.claims", names=names_of, settings=ARCHITECTURE_SETTINGS),

    use rule step as figure_architecture with:
        """Lift by depth, correlation with WordNet, and agreement of networks, by set of images."""
        input:
            **{
                kind: [OF_NETWORK[name][kind] for names in COMPARED.values() for name in names]
                for kind in ("statistics", "headlines")
            },
            agreements=expand(rules.architecture_agreement.output, images=COMPARED),
        output:
            **figure("architecture", "2 ImageNet"),
        params:
            **call(
                "architecture.figures.networks",
                settings=settings(
                    "imagenet.analysis",
                    "claim_neighbors",
                    compared=COMPARED,
                    gammas=json.loads(ARCHITECTURE_SETTINGS)["gammas"],
                ),
            ),
