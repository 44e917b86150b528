"""TangleNAS's toy macro space: widths and kernel sizes of four convolutions (section 4.1).

There is a table of the true accuracy of all 6561 architectures on CIFAR-10.
"""

from __future__ import annotations

from typing import Any

from nasjax.core.architecture import Arch
from nasjax.core.cost import Term
from nasjax.core.space import Axis, Choice, Length, SearchSpace, centred, private
from nasjax.core.supernet import Supernet
from nasjax.models.conv_macro import LARGEST, ConvMacroNetwork
from nasjax.spaces import genotype

CHANNELS = ((8, 16, 32), (16, 32, 64), (32, 64, 128), (64, 128, 256))
KERNELS = (3, 5, 7)
_SHRINKS = (1, 1, 2, 4)  # by how much the images each convolution makes are smaller


def toy_conv_macro(
    *,
    image_size: int = 32,
    num_classes: int = 10,
    dropout: float = 0.5,
    gain: float = 1.0,
    sharing: str = "entangled",
) -> Supernet:
    """The super-network of the toy macro space.

    Args:
      image_size: side of the images in pixels, a multiple of 4 from 12.
      num_classes: number of classes.
      dropout: rate at which whole channels are dropped, twice.
      gain: of the initial kernels, see :class:`~nasjax.models.conv_macro.ConvMacroNetwork`.
      sharing: ``"entangled"``, or ``"plain"`` where every combination of kernel size, inputs and
        outputs has a kernel of its own.

    Raises:
      SpaceError: if an option is unknown, or the images are of another size.
    """
    genotype.check_images(image_size, 12)
    plain = not genotype.entangles(sharing, "outside")
    layers = range(1, len(CHANNELS) + 1)
    choices = [Choice(f"channels_{i}", CHANNELS[i - 1]) for i in layers]
    choices += [Choice(f"kernel_{i}", KERNELS) for i in layers]
    axes: dict[str, Axis | Length] = {f"channels_{i}": f"channels_{i}" for i in layers}
    axes |= {f"kernel_{i}": centred(f"kernel_{i}") for i in layers}
    if plain:
        axes |= {f"own_{name}": private(name) for name in tuple(axes)}
    space = SearchSpace("toy_conv_macro", choices=tuple(choices), axes=axes)
    widths = ((3,), *CHANNELS)  # images have three channels
    owners = tuple((widths[i - 1], widths[i], KERNELS) for i in layers)
    sizes: dict[str, Any] = {"num_classes": num_classes, "dropout": dropout, "gain": gain}

    def build(channels: Any, kernels: Any, owners: Any) -> ConvMacroNetwork:
        shared = owners if plain else None
        return ConvMacroNetwork(tuple(channels), tuple(kernels), owners=shared, **sizes)

    def network(arch: Arch) -> ConvMacroNetwork:
        channels, kernels = ([arch[f"{n}_{i}"] for i in layers] for n in ("channels", "kernel"))
        inputs = (3, *channels)
        own = tuple(((inputs[i - 1],), (inputs[i],), (kernels[i - 1],)) for i in layers)
        return build(channels, kernels, own)

    def column(name: str, i: int) -> Any:
        return lambda arch: arch[f"{name}_{i}"]

    return Supernet(
        space,
        build([max(c) for c in CHANNELS], (max(KERNELS),) * len(CHANNELS), owners),
        network,
        (image_size, image_size, 3),
        costs={"flops": _multiply_adds(image_size, num_classes)},
        columns={
            **{f"c{i}": column("channels", i) for i in layers},
            **{f"k{i}": column("kernel", i) for i in layers},
        },
    )


def _multiply_adds(image_size: int, classes: int) -> list[Term]:
    terms = []
    for i, shrink in enumerate(_SHRINKS, start=1):
        side = image_size // shrink
        kernel, widths = (f"kernel_{i}",) * 2, (f"channels_{i - 1}", f"channels_{i}")
        if i == 1:
            terms.append(Term(3 * side**2, (*kernel, widths[1])))
        else:
            terms.append(Term(side**2, (*kernel, *widths)))
    last = image_size // 4 - 2  # the side of what the last convolution makes
    terms.append(Term(last**2 * LARGEST**2 * 256, ("channels_4",)))
    return [*terms, Term(last**2 * 256 * 256 + 256 * 128 + 128 * 64 + 64 * classes)]
