"""TangleNAS's toy cell space: three cells, three edges each, four operations (section 4.1).

The normal cell and the two reduction cells choose an operation on each of their edges 0->1, 0->2
and 1->2. There is a table of the true accuracy of all 4096 architectures on Fashion-MNIST.
"""

from __future__ import annotations

from typing import Any

from nasjax.core.architecture import Arch
from nasjax.core.cost import Term
from nasjax.core.errors import ArchitectureError
from nasjax.core.supernet import Supernet
from nasjax.models.cells import ToyCellNetwork, incoming
from nasjax.models.operations import candidates
from nasjax.spaces import genotype

OPERATIONS = ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")
KINDS = ("normal", "reduce")
BEGINS = (0, 0, 1)  # the node each edge comes from
_CELLS = ("reduce", "normal", "reduce")


def toy_cell(
    *,
    image_size: int = 28,
    image_channels: int = 1,
    num_classes: int = 10,
    channels: int = 32,
    dropout: float = 0.2,
    sharing: str = "entangled",
    group_mass: str = "outside",
) -> Supernet:
    """The super-network of the toy cell space.

    Args:
      image_size: side of the images in pixels, a multiple of 4.
      image_channels: channels of the images.
      num_classes: number of classes.
      channels: width of the first two cells; the last has twice as many.
      dropout: rate after every cell and after the hidden layer.
      sharing: ``"entangled"``, or ``"plain"`` for weights of its own for every operation.
      group_mass: ``"outside"``, or ``"inside"`` for the authors' form, see
        :mod:`nasjax.models.operations`.

    Raises:
      SpaceError: if an option is unknown, or the images are of another size.
    """
    genotype.check_images(image_size)
    found = candidates(OPERATIONS, genotype.entangles(sharing, group_mass))
    stacks = {kind: f"{kind}_edges" for kind in KINDS}
    space = genotype.cell_space("toy_cell", OPERATIONS, found, stacks, len(BEGINS))
    sizes: dict[str, Any] = {"channels": channels, "num_classes": num_classes, "dropout": dropout}
    options = (("weighed", True), ("group_mass", group_mass))
    module = ToyCellNetwork((found,) * 3, (found,) * 3, options=options, **sizes)

    def network(arch: Arch) -> ToyCellNetwork:
        normal, reduce = (genotype.chosen(found, arch[kind]) for kind in KINDS)
        return ToyCellNetwork(normal, reduce, **sizes)

    index = OPERATIONS.index
    columns = {
        f"{kind[0]}{begin}{end}": genotype.at(kind, edge, index)
        for kind in KINDS
        for edge, (begin, end) in enumerate(((0, 1), (0, 2), (1, 2)))
    }
    return Supernet(
        space,
        module,
        network,
        (image_size, image_size, image_channels),
        costs={"flops": _multiply_adds(found, image_size, image_channels, channels, num_classes)},
        to_text=to_genotype,
        from_text=from_genotype,
        nodes={kind: incoming(1, len(BEGINS)) for kind in KINDS},
        columns=columns,
    )


def to_genotype(arch: Arch) -> str:
    """``arch`` as ``Genotype(normal=[(operation, node), ...], ...)``."""
    normal, reduce = (list(zip(arch[kind], BEGINS, strict=True)) for kind in KINDS)
    return genotype.write_genotype(normal, reduce, range(1, 3))


def from_genotype(text: str) -> dict[str, Any]:
    """The architecture of a genotype.

    Raises:
      ArchitectureError: if the text is no genotype of this space.
    """
    arch = {}
    for kind, pairs in genotype.read_genotype(text).items():
        if tuple(begin for _, begin in pairs) != BEGINS:
            raise ArchitectureError(
                f"the {kind} cell has edges from the nodes {[b for _, b in pairs]}; in space "
                f"'toy_cell' they come from {list(BEGINS)}."
            )
        arch[kind] = [genotype.known_operation(o, OPERATIONS, "toy_cell") for o, _ in pairs]
    return arch


def _multiply_adds(
    found: Any, image_size: int, image_channels: int, channels: int, classes: int
) -> list[Term]:
    side, inputs, terms = image_size, image_channels, []
    for i, kind in enumerate(_CELLS):
        features = channels * (2 if i == 2 else 1)
        terms.append(Term(side**2 * inputs * features))
        side, inputs = side // 2 if kind == "reduce" else side, 2 * features
        for edge in range(len(BEGINS)):
            terms += genotype.multiply_adds(
                found, f"{kind}_edges", edge, features, features, side**2
            )
    return [*terms, Term((side // 2) ** 2 * inputs * 128), Term(128 * classes)]
