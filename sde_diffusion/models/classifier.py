"""Classifier guidance: a score of all data, pushed to a class by a classifier of noisy data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import final

import torch
from torch import Tensor, nn

from sde_diffusion._check import a_function, an_object, number, wrong_type, wrong_value
from sde_diffusion.scores import AroundScore, ScoreLike

Classifier = Callable[[Tensor, Tensor], Tensor]  # (x, t) -> logits of the classes


@final
class ClassifierGuided(AroundScore):
    """The score ∇ log p_t(x) + w ∇ log p_t(c | x) of a class c, by a classifier of noisy data.

    With w = 1 it is the score of the class where both are exact.

    Arguments:
        model: the score of all data.
        classifier: (x, t) ↦ logits of p_t(c | x), differentiable in x; (B, *event), () or (B,) to
            (B, K).
        labels: the class of each sample; (B,), of integers 0 … K − 1.
        weight: w.

    Shapes: x (B, *event), t () or (B,); result like x.
    Errors: TypeError for parts of another kind or logits without a graph to x; ValueError for
    another number of labels than of samples, or logits of another shape.
    Source: Sohl-Dickstein et al. 2015; Dhariwal & Nichol 2021, equation 9.

    >>> from sde_diffusion import Gaussian, VPSDE
    >>> model = Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE())
    >>> two = lambda x, t: torch.cat([x, -x], 1)  # p(0 | x) = 1/(1 + e^{−2x}), of slope ½·2 at 0
    >>> found = ClassifierGuided(model, two, torch.tensor([0, 1]))
    >>> found(torch.zeros(2, 1), torch.tensor(0.5)).tolist()
    [[1.0], [-1.0]]
    """

    def __init__(
        self, model: ScoreLike, classifier: Classifier, labels: Tensor, weight: float = 1.0
    ) -> None:
        remedy = "pass a ScoreModel, or an oracle's .diffused(sde)"
        an_object("ClassifierGuided", "model", model, ScoreLike, remedy)
        form = "(x, t) -> logits"
        a_function("ClassifierGuided", "classifier", classifier, form, "pass a network")
        remedy = "pass for example torch.tensor([3, 1, 4])"
        an_object("ClassifierGuided", "labels", labels, Tensor, remedy)
        if labels.ndim != 1 or labels.is_floating_point():
            got = f"{labels.dtype} of shape {tuple(labels.shape)}"
            raise wrong_type("ClassifierGuided", "labels", "be a row of integers", got, remedy)
        if len(labels) and int(labels.min()) < 0:
            least = int(labels.min())
            raise wrong_value("ClassifierGuided", "labels", "be 0 or more", least, remedy)
        number("ClassifierGuided", "weight", weight, "pass weight=1.0")
        self.model = model
        self.classifier = classifier
        self.labels = labels.long()
        self.weight = weight
        self.sde = model.sde

    @property
    def row_by_row(self) -> bool:
        return False  # the classifier is a stranger

    def in_training(self) -> bool:
        own = isinstance(self.classifier, nn.Module) and self.classifier.training
        return own or self.model.in_training()

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        yield from self.model.parameters(recurse)
        if isinstance(self.classifier, nn.Module):
            yield from self.classifier.parameters(recurse)

    def in_double(self) -> ClassifierGuided:
        known = self.classifier
        wide = copy.deepcopy(known).double() if isinstance(known, nn.Module) else known
        return ClassifierGuided(self.model.in_double(), wide, self.labels, self.weight)

    def rows(self, index: Tensor) -> ClassifierGuided:
        part = self.labels[index.to(self.labels.device)]
        return ClassifierGuided(self.model.rows(index), self.classifier, part, self.weight)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return ∇ log p_t(x) + w ∇ log p_t(c | x)."""
        return self.model(x, t) + self.weight * self.push(x, t)

    def push(self, x: Tensor, t: Tensor) -> Tensor:
        """Return ∇ log p_t(c | x), with the graph to x where x has one."""
        if len(self.labels) != len(x):
            rule = f"be one for each of the {len(x)} samples"
            remedy = f"pass torch.full(({len(x)},), 3) for class 3"
            raise wrong_value("ClassifierGuided", "labels", rule, len(self.labels), remedy)
        kept = torch.is_grad_enabled() and x.requires_grad
        with torch.inference_mode(mode=False), torch.enable_grad():
            leaf = x if kept else x.detach().clone().requires_grad_()
            found = self._log_prob(leaf, t.clone() if t.is_inference() else t)
            return torch.autograd.grad(found.sum(), leaf, create_graph=kept)[0]

    def _log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """Return log p_t(c | x); (B,)."""
        logits = self.classifier(x, t)
        if not isinstance(logits, Tensor) or not logits.requires_grad:
            rule = "return logits with a graph to x"
            got = "a detached tensor" if isinstance(logits, Tensor) else type(logits).__name__
            raise wrong_type(
                "ClassifierGuided", "classifier", rule, got, "remove no_grad or detach"
            )
        if logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] <= int(self.labels.max()):
            rule = f"return logits ({len(x)}, K) with K above {int(self.labels.max())}"
            shape = tuple(logits.shape)
            remedy = "return one row of logits for each sample"
            raise wrong_value("ClassifierGuided", "classifier", rule, shape, remedy)
        labels = self.labels.to(logits.device)
        return logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
