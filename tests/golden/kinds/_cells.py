"""What the kinds of the cell and toy spaces share: models, programs, quantities of a case."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from nasjax import relax
from nasjax.core import mixture as mixtures
from nasjax.core.names import leaves
from nasjax.core.supernet import Supernet
from nasjax.interop import cells
from nasjax.models.cells import AuxiliaryHead, ReLUConvNorm, ResidualReduction
from nasjax.models.convolution import Conv
from nasjax.models.operations import Edge, FactorizedReduce
from tests.golden.fixture import Fixture, GoldenError
from tests.golden.kinds._vision import channels_last
from tests.golden.outcome import Case, Quantity

Arrays = Mapping[str, jax.Array]
ToMixture = Callable[[Arrays], Mapping[str, jax.Array]]

ROUNDINGS = 16  # how often a gradient is tried again


def model(fixture: Fixture, name: str) -> Mapping[str, Any]:
    """What the file says of the model called ``name``."""
    models = fixture.get("models")
    if name not in models:
        raise GoldenError(f"{fixture.path.name} describes no model {name!r}.")
    return models[name]


def searched(fixture: Fixture, name: str, build: Callable[..., Supernet]) -> Searched:
    """The super-network called ``name``, of which ``build`` makes every form."""
    constructor = model(fixture, name)["constructor"]
    # A network that holds all operations of every edge is one with plain sharing.
    sharing = "entangled" if constructor.get("entangle_weights") else "plain"
    default = build(sharing=sharing)
    supernet = build(sharing=sharing, group_mass="inside")
    return Searched(supernet, weights(fixture, name), default)


@dataclass(frozen=True)
class Handlers:
    """What a kind makes of the cases of its files.

    Attributes:
      decode: of alphas to decode.
      count: of a network that is only counted.
      network: of a model of one genotype, what its cases are checked with.
      alone: of a case of such a model.
      build: of a super-network, what makes every form of it.
      searched: of a case of a super-network.
    """

    decode: Callable[[Fixture, Mapping[str, Any]], Case]
    count: Callable[[Fixture, Mapping[str, Any]], Case]
    network: Callable[[Fixture, str], tuple[Supernet, nn.Module, Any]]
    alone: Callable[..., Case]
    build: Callable[[Fixture, str], Callable[..., Supernet]]
    searched: Callable[[Fixture, Mapping[str, Any], Searched], Case]


def check(fixture: Fixture, handlers: Handlers) -> Iterator[Case]:
    """Every case of a file whose models are networks of a genotype and super-networks."""

    @functools.cache
    def network(name: str) -> Any:
        return handlers.network(fixture, name)

    @functools.cache
    def supernet(name: str) -> Searched:
        return searched(fixture, name, handlers.build(fixture, name))

    for case in fixture.get("cases"):
        if "decode" in case:
            yield handlers.decode(fixture, case)
        elif "count_only" in case:
            yield handlers.count(fixture, case)
        elif "genotype" in model(fixture, case["model"])["constructor"]:
            yield handlers.alone(fixture, case, *network(case["model"]))
        else:
            yield handlers.searched(fixture, case, supernet(case["model"]))


def argmax_case(
    fixture: Fixture, case: Mapping[str, Any], net: Searched, mixture: Mapping[str, Any]
) -> Case:
    """The output on the authors' argmax path."""
    output = net.argmax(mixture, images(fixture, case), case["mode"] == "train")
    quantity = Quantity.of("one-hot", "output", output, fixture.array(case["output"]))
    return case_of(case, [quantity], case["output"])


def sized(
    fixture: Fixture, name: str, make: Callable[..., Supernet], *, cells: str
) -> Callable[..., Supernet]:
    """``make`` at the size of the model called ``name``, which calls its cells ``cells``."""
    constructor = model(fixture, name)["constructor"]
    return functools.partial(
        make,
        image_size=images(fixture).shape[1],
        num_classes=constructor["num_classes"],
        channels=constructor["C"],
        cells=constructor[cells],
    )


def weights(fixture: Fixture, name: str) -> dict[str, np.ndarray]:
    """All tensors of the model called ``name``."""
    return {p["name"]: fixture.draw(p) for p in model(fixture, name)["params"]}


def entry(fixture: Fixture, tag: str) -> np.ndarray:
    """The input called ``tag``, as the reference has it."""
    inputs = fixture.get("input")
    if tag not in inputs:
        raise GoldenError(f"{fixture.path.name} lists no input {tag!r}.")
    return fixture.draw({"name": f"input:{tag}", "shape": inputs[tag]})


def images(fixture: Fixture, case: Mapping[str, Any] | None = None) -> np.ndarray:
    """The images of ``case``; where it does not say, the first ones of the file."""
    pictures = [tag for tag, shape in fixture.get("input").items() if len(shape) == 4]
    tag = (case or {}).get("input") or next(iter(pictures), "x")
    return channels_last(entry(fixture, tag))


def target(fixture: Fixture, case: Mapping[str, Any]) -> np.ndarray:
    """What the case multiplies the output by: its loss is sum(output * target) / batch."""
    match = re.fullmatch(r"sum\(logits\*g\)/batch, g = input of tag (\S+)", case["loss"])
    if match is None:
        raise GoldenError(f"the loss {case['loss']!r} is not known.")
    return entry(fixture, match[1])


def leaf_sizes(params: Any) -> int:
    """The number of parameters of a tree of arrays or of their shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def counts(
    supernet: Supernet, arch: Mapping[str, Any], variables: Any, expected: int
) -> Iterator[Quantity]:
    """The parameters of an architecture as counted, and those of the extracted network."""
    yield Quantity.of("num_params", "count", supernet.count("params", arch), expected)
    yield Quantity.of("leaves", "count", leaf_sizes(variables["params"]), expected)


def same(name: str, actual: Any, expected: Any) -> Quantity:
    """Whether two things that are no numbers are equal."""
    return Quantity.of(name, "count", int(actual != expected), 0)


def case_of(case: Mapping[str, Any], quantities: Sequence[Quantity], *about: Any) -> Case:
    """The outcome of ``case``, which has no name of its own."""
    own = (case.get("model"), case.get("path"), case.get("mode"), *about)
    name = " ".join(str(part) for part in own if part is not None)
    return Case(name, case.get("bar", "all"), tuple(quantities))


# Programs. Edges of a kind are equal but for their weights: compiled once for all of them, a
# super-network of DARTS takes a tenth of the time that it takes as one program.
_BLOCKS = (Edge, ReLUConvNorm, FactorizedReduce, ResidualReduction, AuxiliaryHead, Conv)


def apply(module: nn.Module, variables: Any, x: Any, train: bool, **options: Any) -> Any:
    """``module.apply`` with every edge, and every other block, as a compiled program."""
    with nn.intercept_methods(_by_block):
        return module.apply(variables, x, train=train, **options)


def _by_block(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
    block = context.module
    if not _outermost(block):
        return next_fun(*args, **kwargs)
    x, *flags = args
    return _program(_alone(block), tuple(flags))(dict(block.variables), x)


def _outermost(module: nn.Module) -> bool:
    """Whether ``module`` is a block of a network, and not within one."""
    root = module
    while isinstance(root.parent, nn.Module):
        root = root.parent
    return isinstance(module, _BLOCKS) and not isinstance(root, _BLOCKS)


def _alone(block: nn.Module) -> nn.Module:
    return block.clone(parent=None, name=None)


@functools.cache
def _program(block: nn.Module, flags: tuple[Any, ...]) -> Any:
    # The gradient of a large convolution would run for seconds.
    large = isinstance(block, Conv) and block.kernel_size > 3
    level = {"xla_backend_optimization_level": 3} if large else {}
    return program(lambda variables, x: block.apply(variables, x, *flags), **level)


def parameters(module: nn.Module, input_shape: Sequence[int], train: bool = False) -> int:
    """The number of parameters that ``module`` has; blocks that are equal are made once."""
    found = []

    def count(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        block = context.module
        if not _outermost(block):
            return next_fun(*args, **kwargs)
        x, *flags = args
        output, variables = _made(_alone(block), tuple(flags), x.shape)
        found.append(leaf_sizes(variables.get("params", {})))
        return jnp.zeros(output.shape, output.dtype)

    def init(key: jax.Array) -> Any:
        return module.init(key, jnp.zeros((1, *input_shape)), train=train)

    with nn.intercept_methods(count):
        variables = jax.eval_shape(init, jax.random.key(0))
    return sum(found) + leaf_sizes(variables["params"])


@functools.cache
def _made(block: nn.Module, flags: tuple[Any, ...], shape: tuple[int, ...]) -> Any:
    def init(key: jax.Array) -> Any:
        return block.init_with_output(key, jnp.zeros(shape), *flags)

    return jax.eval_shape(init, jax.random.key(0))


def program(function: Callable[..., Any], **options: Any) -> Any:
    """``function`` as a program, and its gradient as another."""
    compiled = jax.jit(function, compiler_options=options)
    pull_back = jax.jit(
        lambda given, cotangent: jax.vjp(function, *given)[1](cotangent), compiler_options=options
    )
    differentiable = jax.custom_vjp(compiled)
    differentiable.defvjp(lambda *given: (compiled(*given), given), pull_back)
    return differentiable


class Searched:
    """A super-network with the weights of a model.

    Attributes:
      supernet: the super-network, in the authors' form.
      variables: its weights.
      default: its module in the library's own form: here the mass of entangled operations weighs
        their output, so that under a one-hot mixture it computes the authors' argmax path.
    """

    def __init__(
        self, supernet: Supernet, tensors: Mapping[str, np.ndarray], default: Supernet | None = None
    ) -> None:
        self.supernet = supernet
        self.variables = cells.import_weights(tensors, supernet)
        self.default = (default or supernet).module

    @functools.cached_property
    def _superpose(self) -> Any:
        return program(self.supernet.superpose)

    @functools.cached_property
    def _varying(self) -> set[tuple[str, ...]]:
        net = self.supernet
        plan = leaves(net.space, net.names, self.variables)
        return {leaf.path for leaf in plan if any(a and net.space.depends(a) for a in leaf.axes)}

    def superpose(self, variables: Any, mixture: Any) -> Any:
        """The super-network's variables; which form it has is a matter of the module alone."""
        # Arrays that no choice touches come back as they are, and would only be compiled for long.
        flat = traverse_util.flatten_dict(dict(variables))
        part = traverse_util.unflatten_dict({p: v for p, v in flat.items() if p in self._varying})
        found = traverse_util.flatten_dict(self._superpose(part, mixture))
        return traverse_util.unflatten_dict({**flat, **found})

    def output(self, mixture: Any, x: Any, train: bool, variables: Any = None) -> Any:
        """The logits under ``mixture`` in the authors' form, of other ``variables`` if given."""
        superposed = self.superpose(variables or self.variables, mixture)
        return apply(self.supernet.module, superposed, x, train)

    def argmax(self, mixture: Any, x: Any, train: bool) -> Any:
        """The logits under a one-hot ``mixture`` in the library's form, the argmax path."""
        return apply(self.default, self.superpose(self.variables, mixture), x, train)

    def gradients(self, mixture: Any, x: Any, target: Any) -> Any:
        """Loss and output in training, and gradients by parameters and by the mixture."""
        rest = {c: tree for c, tree in self.variables.items() if c != "params"}

        def loss(params: Any, mixture: Any) -> Any:
            superposed = self.superpose({"params": params, **rest}, mixture)
            output = apply(self.supernet.module, superposed, x, True)
            return jnp.sum(output * target) / len(target), output

        found = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        return found(self.variables["params"], mixture)


def given(fixture: Fixture, case: Mapping[str, Any], prefix: str) -> dict[str, jax.Array]:
    """The arrays whose keys are in ``PREFIX`` or ``PREFIX_NAME`` of the case, by that name."""
    found = {key: case[key] for key in case if key == prefix or key.startswith(f"{prefix}_")}
    return {
        key.removeprefix(prefix).lstrip("_"): jnp.asarray(fixture.array(array))
        for key, array in found.items()
    }


def soft_case(
    fixture: Fixture,
    case: Mapping[str, Any],
    net: Searched,
    to_mixture: ToMixture,
    variables: Any = None,
) -> list[Quantity]:
    """Output, loss and gradients of a super-network under the mixture that the case gives.

    An activation within rounding of zero has a gradient on either side of its ReLU, and theirs
    need not be on the side of ours: where a gradient is off, that of images which differ in the
    last bit will do too.
    """
    x = images(fixture, case)
    quantities = list(_soft(fixture, case, net, to_mixture, variables, x))
    for seed in range(ROUNDINGS if case.get("bar", "all") == "all" else 0):
        if {q.kind for q in quantities if not q.within} != {"gradient"}:
            break
        up = np.random.default_rng(seed).random(x.shape) < 0.5
        nudged = np.nextafter(x, np.where(up, np.inf, -np.inf), dtype=x.dtype)
        found = list(_soft(fixture, case, net, to_mixture, variables, nudged))
        quantities = min(quantities, found, key=lambda qs: max(q.error for q in qs))
    return quantities


def _soft(
    fixture: Fixture,
    case: Mapping[str, Any],
    net: Searched,
    to_mixture: ToMixture,
    variables: Any,
    x: np.ndarray,
) -> Iterator[Quantity]:
    mixture, pull_back = jax.vjp(to_mixture, given(fixture, case, "mixture"))
    if "loss" not in case:
        output = net.output(mixture, x, case.get("mode", "train") == "train", variables)
        yield Quantity.of("output", "output", output, fixture.array(case["output"]))
        return
    (loss, output), (by_weight, by_mixture) = net.gradients(mixture, x, target(fixture, case))
    (by_given,) = pull_back(by_mixture)
    yield Quantity.of("loss", "loss", loss, case["loss_value"])
    if "output" in case:
        yield Quantity.of("output", "output", output, fixture.array(case["output"]))
    for name, expected in given(fixture, case, "grad_mixture").items():
        # Off the simplex there are several right answers; a relaxation only moves on it.
        actual = centred(by_given[name])
        yield Quantity.of(f"grad mixture {name}".strip(), "gradient", actual, centred(expected))
    yield from _parameter_gradients(fixture, case, net.supernet, by_weight)


def _parameter_gradients(
    fixture: Fixture, case: Mapping[str, Any], supernet: Supernet, gradients: Any
) -> Iterator[Quantity]:
    flat = traverse_util.flatten_dict({"params": gradients})
    expected = case.get("grad_params", {})
    found = {n: t for t in cells.tensors(supernet) for n in t.names if n in expected}
    for name, key in expected.items():
        if name not in found:
            raise GoldenError(f"{name!r} is no tensor of this network.")
        own = found[name].read(name, fixture.array(key))
        yield Quantity.of(f"grad {name}", "gradient", flat[found[name].path], own)


def centred(rows: Any) -> jax.Array:
    """Rows less their means: what is tangent to the simplex."""
    return jnp.asarray(rows) - jnp.mean(rows, -1, keepdims=True)


def reorder(rows: jax.Array, theirs: Sequence[str], ours: Sequence[str]) -> jax.Array:
    """Columns in the order of our options.

    Raises:
      GoldenError: if the options are others.
    """
    if sorted(theirs) != sorted(ours):
        raise GoldenError(f"the options {sorted(theirs)} are not {sorted(ours)}.")
    return rows[:, np.array([list(theirs).index(option) for option in ours])]


def decoded(
    fixture: Fixture,
    case: Mapping[str, Any],
    supernet: Supernet,
    shapes: Mapping[str, tuple[int, int]],
    to_mixture: ToMixture,
) -> dict[str, Any]:
    """The architecture that the alphas drawn in the case speak for.

    Args:
      fixture: the file.
      case: the case, whose ``alphas_recipe`` lists names of tensors.
      supernet: of the space.
      shapes: of the arrays of the mixture, in the order of the names.
      to_mixture: from these arrays to a mixture, and so to alphas.
    """
    names = case["alphas_recipe"]
    names = [names] if isinstance(names, str) else names
    arrays = {
        array: jnp.asarray(fixture.draw({"name": name, "shape": shape}))
        for name, (array, shape) in zip(names, shapes.items(), strict=True)
    }
    return relax.decode(supernet.space, relax.darts(), to_mixture(arrays))


def written(supernet: Supernet, text: str) -> Iterator[Quantity]:
    """Whether a genotype is read, and written as it was."""
    assert supernet.from_text is not None and supernet.to_text is not None
    yield same("genotype", supernet.to_text(supernet.from_text(text)), text)


def one_hot(supernet: Supernet, arch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The mixture that is ``arch`` alone."""
    return mixtures.one_hot(supernet.space, supernet.architecture(arch))
