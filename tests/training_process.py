"""`cmmfnet train` with the method of dropout_method.py, and on request with a broken promise.

    python tests/training_process.py [--break NAME] train ...
    torchrun --nproc-per-node 2 tests/training_process.py train ...

NAME: seeds (dropout is not seeded by step), pools (they are not restored), slow (50 ms more a
    step), captured (no
promise: the generator goes without DistributedDataParallel, as one that is captured as CUDA graphs
    does), alone (so, and its gradients stay each process' own).
"""

from __future__ import annotations

import sys
import time

from cmmfnet.methods import METHODS

METHODS["dropout"] = "dropout_method:DropoutMethod"


def broken(promise: str) -> None:
    from cmmfnet.training import checkpoint, run

    if promise == "seeds":
        run.seed_torch = lambda recipe, step, process: None
    elif promise == "pools":
        load = checkpoint.load

        def forgetful(path):
            state = load(path)
            return state | {"pools": [{name: [] for name in pools} for pools in state["pools"]]}

        checkpoint.load = forgetful
    elif promise == "slow":
        update = run.Run.update

        def slow(self, step, batch):
            time.sleep(0.05)
            update(self, step, batch)

        run.Run.update = slow
    elif promise in ("captured", "alone"):
        begin = run.Run.__init__

        def unwrapped(self, *given, **more):
            begin(self, *given, **more)
            self.method.networks["generator"] = self.networks["generator"]

        run.Run.__init__ = unwrapped
        if promise == "alone":
            run.Run._reduced = lambda self, optimiser: True
    else:
        raise ValueError(promise)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[0] == "--break":
        broken(arguments[1])
        arguments = arguments[2:]
    from cmmfnet.__main__ import leave
    from cmmfnet.cli import main

    leave(main(arguments))
