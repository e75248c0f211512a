"""Controls of experiment 2, through the exact limit: an untrained network, several images a class.

Each control is computed where its images are there, else its tracked copy is read. Only the controls
that `imagenet.controls` lists are analyzed.
"""

CONTROLS = f"{IMAGENET}/controls"
ARCHIVE = imagenet["tiny_imagenet"]["archive"]
# Generated images come several a class, as Tiny ImageNet's do.
TINY = f"{CONTROLS}/tiny_images" if ARCHIVE else IMAGES
CONTROL = {
    "untrained": {"image_folder": IMAGES, "weights": "random"},
    "tiny": {"image_folder": TINY, "per_class": None, "max_inputs": None},
    "tiny_untrained": {
        "image_folder": TINY,
        "per_class": None,
        "max_inputs": None,
        "weights": "random",
    },
}


# Where the intermediates of a control come from: computed if its images are there.
COMPUTED = {name: ARCHIVE or imagenet["image_folder"] == "generated" for name in CONTROL}
COMPUTED["untrained"] = IMAGES
CONTROL_FOLDER = {
    name: f"{CONTROLS if COMPUTED[name] else f'{REFERENCE}/imagenet/controls'}/{name}"
    for name in CONTROL
}
CONTROL_SETTINGS = {
    name: settings("imagenet", LOADING, **{"device": "cpu", "seed": SEED, **CONTROL[name]})
    for name in CONTROL
}


wildcard_constraints:
    control="|".join(CONTROL),


if ARCHIVE:

    use rule step as imagenet_tiny_images with:
        """Some images of each class of Tiny ImageNet, in class folders."""
        input:
            archive=ARCHIVE,
        output:
            directory(TINY),
        params:
            **call(
                "imagenet.controls.tiny_images", per_class=imagenet["tiny_imagenet"]["per_class"]
            ),

    use rule imagenet_manifest as imagenet_tiny_manifest with:
        """Name, size and hash of these images."""
        input:
            images=TINY,
        output:
            f"{CONTROLS}/tiny_manifest.csv",
        params:
            **call("imagenet.sample.manifest"),


TINY_MANIFEST = rules.imagenet_tiny_manifest.output if ARCHIVE else MANIFEST
control_manifest = lambda wildcards: (
    MANIFEST if CONTROL[wildcards.control]["image_folder"] == IMAGES else TINY_MANIFEST
)
control_settings = lambda wildcards: CONTROL_SETTINGS[wildcards.control]


use rule imagenet_features as imagenet_control_gradients with:
    """Loss gradient of every image of a control; resumable."""
    input:
        manifest=control_manifest,
    output:
        temp(directory(f"{CONTROLS}/{{control}}/gradients")),
    resources:
        mem_mb=MODEL_MEMORY,
        runtime=240,
    params:
        **call("imagenet.sample.gradients", settings=control_settings),


use rule step as imagenet_control_limit with:
    """Gram matrix of a control's gradients, its loss kernel in the limit of high localization."""
    input:
        gradients=rules.imagenet_control_gradients.output,
    output:
        f"{CONTROLS}/{{control}}/limit.npz",
    threads: imagenet["threads"]
    resources:
        runtime=120,
    params:
        **call("imagenet.controls.limit"),


use rule imagenet_features as imagenet_control_features with:
    """Penultimate features of a control."""
    input:
        manifest=control_manifest,
    output:
        f"{CONTROLS}/{{control}}/features.npz",
    params:
        **call("imagenet.sample.features", settings=control_settings),


if imagenet["controls"]:
    # The network and the images of the experiment itself stand beside the controls.
    ANALYZED = [*(["trained"] if imagenet["limit"] else []), *imagenet["controls"]]

    FOLDERS = [INTERMEDIATE if name == "trained" else CONTROL_FOLDER[name] for name in ANALYZED]

    use rule step as imagenet_controls with:
        """How semantic each control's neighbors are, with pairs of equal label and without."""
        input:
            limits=expand("{folder}/limit.npz", folder=FOLDERS),
            features=expand("{folder}/features.npz", folder=FOLDERS),
            hierarchy=HIERARCHY,
        output:
            f"{CONTROLS}/controls.csv",
        params:
            **call(
                "imagenet.controls.measure",
                names=ANALYZED,
                settings=settings("imagenet.analysis", "lift_neighbors permutations", seed=SEED),
            ),

    use rule step as figure_imagenet_controls with:
        """Share of neighbors of equal label, and lift with and without such pairs, by control."""
        input:
            controls=rules.imagenet_controls.output,
        output:
            **figure("imagenet_controls", "2 ImageNet"),
        params:
            **call("imagenet.figures.controls", depth=imagenet["analysis"]["claim_depth"]),
