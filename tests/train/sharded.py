"""A small search under a sharding rule, in this process or as one of several.

As a script: ``sharded.py WORKDIR RULE DATA MODEL PAUSE``, the mesh and the seconds to wait after a
step; in the environment the processes, as ``launch/`` reads them.
"""

import dataclasses
import json
import pathlib
import sys
import time

from nasjax import data, relax
from nasjax.spaces.autoformer import vision_transformer
from nasjax.train import optim, phases, sharding
from nasjax.train.session import open_session
from tests.toys import CLASSES, dataset, toy

STEPS = 20
# The toy's axes have names of their own.
RULES = {
    name: dataclasses.replace(rule, names={"hidden": "model"} if rule.names else {})
    for name, rule in sharding.RULES.items()
}


def transformer():
    """A super-network of a vision transformer whose heads divide by two."""
    net = vision_transformer(
        {"embed_dim": (8, 16), "depth": (1, 2), "num_heads": (2, 4), "mlp_ratio": (1.0, 2.0)},
        image_size=4,
        patch_size=2,
        num_classes=CLASSES,
        channels=1,
        head_dim=4,
        reach=1,
    )
    return net


def searched(workdir, rules, mesh, net=None, pause=0.0):
    """The state after 20 steps, and the architecture; saved every third step."""
    net = net or toy()
    session = open_session(workdir, {}, mesh=mesh, rules=rules, seed=3)
    recipe = phases.Recipe(
        epochs=5,
        batch_size=16,
        optimizer=optim.Optimizer(learning_rate=0.05, method="sgd", clip=1.0),
        augmentation=data.Augmentation(shift=1),
        log_every=1,
        save_every=3,
    )
    alphas = optim.alphas_optimizer(1e-2)

    def judge(arch):  # is asked after each step
        time.sleep(pause)
        return {}

    state, method = phases.search(
        session, net, {"name": "gdas"}, dataset(128), recipe, alphas, judge=judge
    )
    assert int(state.step) == STEPS
    return state, relax.decode(net.space, method, state.alphas)


def lines(workdir):
    """What was logged of every step, without times."""
    found = []
    for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        row.pop("steps_per_second")
        found.append(row)
    return found


if __name__ == "__main__":
    from process import join_hosts, one_sentence

    folder, rule, rows, columns, pause = sys.argv[1:]
    with one_sentence():
        join_hosts()
        mesh = sharding.make_mesh(int(rows), int(columns))
        _, arch = searched(folder, RULES[rule], mesh, pause=float(pause))
        print(json.dumps(arch))
