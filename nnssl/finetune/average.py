"""An average of the weights over the training, for validation and prediction (Polyak & Juditsky
1992).

With a learning rate that noise still shakes, the average of the last weights is a better network
than the last one, and one that depends less on when the training stopped. It costs one copy of the
weights and no computation to speak of.

nnU-Net saves the network's weights and the optimiser's state. The former are the average while it
is in use, so that any nnU-Net predicts with it; the latter carries the raw weights, with which
`--c` continues exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

RAW, UPDATES = "raw_weights", "averaged_updates"  # beside the optimiser's own entries


class Average:
    """Of all the weights of `network` that learn, moved towards them after every step of
    `optimizer`.

    decay: what is kept of the average in a step; 0: no average is kept. At first it is less,
           (1 + t) / (10 + t) after t steps, so that the random start is soon forgotten: the average
           is over the last ninth of the training.

    The weights are exchanged in place, since DDP, torch.compile and the optimiser hold the
    parameters themselves.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self.decay, self.updates, self.in_use = decay, 0, False
        self._named = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._others: dict[str, Tensor] = {}  # the average; while that is in use, the raw weights
        optimizer.register_step_post_hook(self._update)
        optimizer.register_state_dict_post_hook(self._save)
        optimizer.register_load_state_dict_pre_hook(self._load)

    def use(self) -> None:
        """Put the averaged weights into the network, if there has been a step."""
        if not self.in_use and self.updates:
            self._exchange()
            self.in_use = True

    def restore(self) -> None:
        """Put the raw, trained weights back into the network."""
        if self.in_use:
            self._exchange()
            self.in_use = False

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._named.items():
            kept = parameter.detach().clone()
            parameter.copy_(self._others[name])
            self._others[name].copy_(kept)

    @torch.no_grad()
    def _update(self, *_: object) -> None:
        if not self.decay:
            self.updates = 0  # of a former recipe: with this step that average is out of date
            return
        if not self.updates:
            self._others = self._copies()
        else:
            kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
            raw = [parameter.detach() for parameter in self._named.values()]
            torch._foreach_lerp_(list(self._others.values()), raw, 1 - kept)
        self.updates += 1

    def _copies(self) -> dict[str, Tensor]:
        """Copies of the weights that the network has."""
        return {name: p.detach().clone() for name, p in self._named.items()}

    def _save(self, _: object, state: dict) -> dict:
        if self.in_use:  # else the network's weights in the same file are the raw ones
            state |= {RAW: dict(self._others), UPDATES: self.updates}
        return state

    @torch.no_grad()
    def _load(self, _: object, state: dict) -> dict:
        """The network has its weights already: nnU-Net loads them before the optimiser's state."""
        self.in_use, self.updates = False, state.pop(UPDATES, 0)
        if raw := state.pop(RAW, None):
            self._others = self._copies()
            for name, parameter in self._named.items():
                parameter.copy_(raw[name])
        return state
