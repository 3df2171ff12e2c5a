"""The paper's numbers: accuracies as fractions, and minutes on its Titan XP.

The keys are networks, then methods or attacks; 'clean' is the accuracy as programmed. All are at th_g 0.03 unless
a key gives another.
"""

LENET, CONVNET = "LeNet, MNIST", "ConvNet, CIFAR-10"
RESNET18, TINY = "ResNet-18, CIFAR-10", "ResNet-18, Tiny ImageNet"
IMAGENET, VGG16 = "ResNet-18, ImageNet", "VGG-16, ImageNet"

NETWORKS = {
    LENET: ("lenet", "mnist"),
    CONVNET: ("convnet", "cifar10"),
    RESNET18: ("resnet18", "cifar10"),
    TINY: ("resnet18", "tiny_imagenet"),
    IMAGENET: ("resnet18_imagenet", "imagenet"),
    VGG16: ("vgg16", "imagenet"),
}
"""Their names in model= and dataset=."""
BITS = {LENET: 4, CONVNET: 4, RESNET18: 8, TINY: 8, IMAGENET: 8, VGG16: 8}  # Section III-D, weights and outputs
SAMPLES = {"mnist": 10_000, "cifar10": 10_000, "tiny_imagenet": 10_000, "imagenet": 50_000}  # of the test splits
CHIPS = 100_000  # of Monte Carlo
EPOCHS = 20  # the smallest number in the authors' code
PERCENT = 100


def _columns(names: str, rows: dict[str, str], unit: float = 1) -> dict[str, dict[str, float]]:
    """The rows of a table as the paper prints them, with the numbers divided by `unit`."""
    return {
        network: {name: float(cell) / unit for name, cell in zip(names.split(), row.split(), strict=True)}
        for network, row in rows.items()
    }


TABLE1 = _columns(
    "clean monte_carlo pgd lwc",
    {
        LENET: "99.12 97.34 13.44 7.35",
        CONVNET: "85.31 60.12 10.00 4.27",
        RESNET18: "95.14 88.77 10.00 0.00",
        TINY: "65.23 25.33 0.50 0.00",
        IMAGENET: "69.75 43.98 0.10 0.00",
        VGG16: "71.59 66.43 0.10 0.06",
    },
    unit=PERCENT,
)
TABLE1_MINUTES = _columns(
    "monte_carlo pgd lwc",
    {
        LENET: "900 3.3 5.5",
        CONVNET: "2700 4.2 6.0",
        RESNET18: "5400 13.3 20.0",
        TINY: "14400 40.0 60.0",
        IMAGENET: "231000 1980 2880",
        VGG16: "313800 2530 3820",
    },
)
TABLE2 = _columns(  # settings of LWC; a run is a pass over the data
    "c lr runs",
    {
        LENET: "1e-3 1e-5 500",
        CONVNET: "1e-5 1e-5 100",
        RESNET18: "1e-9 1e-4 20",
        TINY: "1e-10 1e-4 20",
        IMAGENET: "1e-3 1e-3 10",
        VGG16: "1e-3 1e-3 10",
    },
)
TABLE4 = _columns(
    "lwc flwc",
    {LENET: "7.35 11.31", CONVNET: "4.27 1.51", RESNET18: "0.00 2.03", TINY: "0.00 0.00"},
    unit=PERCENT,
)
TABLE4_MINUTES = _columns(
    "lwc flwc", {LENET: "5.5 2.1", CONVNET: "6.0 3.0", RESNET18: "20.0 9.5", TINY: "60.0 28.7"}
)
TABLE5 = _columns(
    "vanilla va adversarial",
    {LENET: "7.35 81.58 98.26", CONVNET: "4.27 3.71 67.09", RESNET18: "0 2.84 34.84", TINY: "0 3.57 7.41"},
    unit=PERCENT,
)
TABLE5_DEVIATIONS = _columns(
    "vanilla va adversarial",
    {LENET: "3.70 0.80 1.05", CONVNET: "0.33 3.76 3.85", RESNET18: "0 1.20 13.20", TINY: "0 3.48 8.10"},
    unit=PERCENT,
)
TABLE6 = {  # ConvNet, by th_g = sigma_d / 10
    0.0: {"vanilla": 0.8593, "trice": 0.8452, "atrice": 0.8417},
    0.01: {"vanilla": 0.1220, "trice": 0.3416, "atrice": 0.5605},
    0.02: {"vanilla": 0.0334, "trice": 0.0886, "atrice": 0.1605},
    0.03: {"vanilla": 0.0151, "trice": 0.0430, "atrice": 0.1013},
    0.04: {"vanilla": 0.0068, "trice": 0.0285, "atrice": 0.1074},
}
FIG4_CONFIDENCE = {"wrong": 0.90, "right": 0.47}  # means over the worst-case LeNet's answers
FIG5_AT_AN_END = 0.65  # share of the weights that are unmoved or at the bound
