"""What accuracy do narrower networks and smaller images lose, and what do they save? (Sec. 6.1 and Fig. 5)

Question: for the best accuracy at a given cost, should the width multiplier or the resolution shrink, and is
          MobileNetV2 better than MobileNetV1 at every cost?
Command:  python experiments/width_resolution.py
          with --widths 0.35 0.5 0.75 --resolutions 14 20 28 for a larger grid
Cost:     28 runs, 330 CPU-seconds, some 3 minutes on 2 CPU cores with compilation.
Expect:   on digits, MobileNetV2 0.95 at 20 pixels and 0.85 at 14, MobileNetV1 0.93 and 0.91.

Each network is trained on images scaled to its resolution. The paper keeps one network for all resolutions, so the
stride-2 layers that take stride 1 on small images do so here at every resolution.
"""

import dataclasses

from mnv2_jax import cli
from mnv2_jax.ablation.design import Arm, Study, StudyOptions, create_study, image_size
from mnv2_jax.errors import UserError
from mnv2_jax.settings import check_size

V1, V2 = "MobileNetV1", "MobileNetV2"

# Fig. 5. V2: slim's table (tensorflow/models, research/slim/nets/mobilenet/README.md). V1: digitized from the figure.
# fmt: off
PUBLISHED = (
    *((V2, cost * 1e6, top1 / 100) for cost, top1 in (
        (582, 75.0), (509, 74.4), (300, 71.8), (221, 70.7), (154, 68.8), (99, 65.3), (56, 60.3), (209, 69.8), (153, 68.7),
        (107, 66.4), (69, 63.2), (39, 58.8), (97, 65.4), (71, 63.9), (50, 61.0), (32, 57.7), (18, 51.2), (59, 60.3),
        (43, 58.2), (30, 55.7), (20, 50.8), (11, 45.5),
    )),
    *((V1, cost * 1e6, top1 / 100) for cost, top1 in (
        (14, 42.9), (21, 45.3), (34, 47.6), (41, 50.6), (49, 55.8), (76, 60.2), (104, 62.2), (110, 62.5), (149, 63.7),
        (162, 64.7), (186, 64.4), (233, 67.3), (290, 67.2), (317, 68.4), (418, 69.1), (569, 70.6),
    )),
)
# fmt: on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StudyOptions):
    """Command-line flags; --width-multiplier at the data set's resolution is the baseline."""

    widths: tuple[float, ...] = (0.35,)
    """Width multipliers."""
    resolutions: tuple[int, ...] = (14, 20)
    """Image sizes in pixels."""


def create(options: Options) -> Study:
    """Return the study: one arm per network, width and resolution; the other flags set the baseline MobileNetV2."""
    full = image_size(options.data)
    for width in options.widths:
        check_size("widths", width)
    for resolution in options.resolutions:
        if not 0 < resolution <= 1024:
            raise UserError(f"--resolutions must be from 1 to 1024 pixels, got {resolution}")
    grid = [
        (network, width, resolution)
        for network in (V2, V1)
        for width in dict.fromkeys(options.widths)
        for resolution in dict.fromkeys(options.resolutions)
    ]
    baseline = (V2, options.network.width_multiplier, full)
    grid.sort(key=lambda point: point != baseline)
    if grid[0] != baseline:
        grid.insert(0, baseline)
    arms = [
        Arm(
            f"{'V2' if network == V2 else 'V1'} {width:g} {resolution}",
            {"name": "mobilenet_v2" if network == V2 else "mobilenet_v1", "width_multiplier": width},
            resolution=resolution,
            series=f"{network}, {resolution} pixels",
        )
        for network, width, resolution in grid
    ]
    return create_study(
        options,
        experiment="width_resolution",
        question="What do width and resolution buy?",
        claim="Accuracy follows multiply-adds smoothly, with width and resolution as the two knobs, and MobileNetV2 is above "
        "MobileNetV1 at every cost (Sec. 6.1, Fig. 5).",
        arms=arms,
        figure="tradeoff",
        published=PUBLISHED,
    )


def main(options: Options) -> None:
    """Run the study."""
    from mnv2_jax.ablation.study import study_command

    study_command(options, create(options))


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
