"""Proximal policy optimisation with two small networks, in numpy.

An agent that acts some dozens of times before it sees one reward learns from a few hundred rows at
a time. For networks of 2 x 64 units that is too little work to be worth a framework, and plain
numpy gives the same bits in every process. More rows than a core's own cache holds are taken in
portions, whose gradients add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
HIDDEN = 64
PORTION = 1024  # rows: what the layers make of them stays in a core's own cache
IMPOSSIBLE = np.float32(-1e9)  # logit of an action that is masked


@dataclass(frozen=True)
class Steps:
    """What was seen and done at every place of some episodes.

    seen: beside the place itself, shape (episodes, places, features). allowed: actions, shape
    (episodes, places, actions), at least one everywhere. done: the action, shape (episodes,
    places). acted: whether there was anything to do, shape (episodes, places).
    """

    seen: Floats
    allowed: NDArray[np.bool_]
    done: NDArray[np.intp]
    acted: NDArray[np.bool_]

    def __getitem__(self, episodes: slice) -> Steps:
        """Those of some episodes."""
        return Steps(
            self.seen[episodes], self.allowed[episodes], self.done[episodes], self.acted[episodes]
        )


class Network:
    """Two hidden layers of 64 tanh units; the input is a place, as a one-hot, and features.

    The one-hot is never written out: a place picks a row of the first layer's weights. The initial
    weights are uniform within 1 / sqrt(inputs), as torch's Linear has them. Trained by Adam (Kingma
    & Ba 2015, arXiv:1412.6980) with the usual constants.
    """

    def __init__(
        self,
        num_places: int,
        num_features: int,
        num_outputs: int,
        learning_rate: float,
        generator: np.random.Generator,
    ) -> None:
        def uniform(fan_in: int, *shape: int) -> Floats:
            drawn: Floats = (generator.uniform(-1, 1, shape) / fan_in**0.5).astype(np.float32)
            return drawn

        num_inputs = num_places + num_features
        self._shapes = [
            (num_places, HIDDEN),  # its bias is in every row
            (num_features, HIDDEN),
            (HIDDEN, HIDDEN),
            (HIDDEN,),
            (HIDDEN, num_outputs),
            (num_outputs,),
        ]
        fans = [num_inputs, num_inputs, HIDDEN, HIDDEN, HIDDEN, HIDDEN]
        parts = [uniform(fan, *shape) for fan, shape in zip(fans, self._shapes, strict=True)]
        self._flat = np.concatenate([part.ravel() for part in parts])
        self._gradient = np.zeros_like(self._flat)
        self.weights = self._views(self._flat)
        self._gradients = self._views(self._gradient)
        self._first, self._second = np.zeros_like(self._flat), np.zeros_like(self._flat)
        self._rate, self._num_steps = learning_rate, 0
        self._work = np.empty((3, 0, HIDDEN), dtype=np.float32)

    def at(self, place: int, seen: Floats) -> Floats:
        """Outputs at one place, shape (episodes, outputs); seen: (episodes, features)."""
        places, features, middle, bias, last, last_bias = self.weights
        hidden = np.tanh(seen @ features + places[place])
        hidden = np.tanh(hidden @ middle + bias)
        result: Floats = hidden @ last + last_bias
        return result

    def forward(self, seen: Floats) -> Floats:
        """Outputs at all places, shape (episodes, places, outputs); kept for `backward`."""
        places, features, middle, bias, last, last_bias = self.weights
        rows = seen.reshape(-1, seen.shape[-1])
        one, two, _ = self._room(len(rows))
        np.matmul(rows, features, out=one)
        first = one.reshape(len(seen), *places.shape)
        first += places
        np.tanh(one, out=one)
        np.matmul(one, middle, out=two)
        two += bias
        np.tanh(two, out=two)
        self._rows = rows
        outputs: Floats = two @ last
        outputs += last_bias
        return outputs.reshape(*seen.shape[:2], -1)

    def backward(self, slopes: Floats) -> None:
        """Add to the gradient of a loss, from its slopes in the outputs of the last `forward`."""
        rows = self._rows
        one, two, back = self._room(len(rows))
        _, _, middle, _, last, _ = self.weights
        out = slopes.reshape(len(rows), -1)
        places, features, d_middle, d_bias, d_last, d_last_bias = self._gradients
        d_last += two.T @ out
        d_last_bias += out.sum(axis=0)
        # Of one output, BLAS takes the outer product for a product of matrices.
        (np.multiply if out.shape[1] == 1 else np.matmul)(out, last.T, out=back)
        back *= _slope_of_tanh(two)
        d_middle += one.T @ back
        d_bias += back.sum(axis=0)
        back = np.matmul(back, middle.T, out=two)
        back *= _slope_of_tanh(one)
        features += rows.T @ back
        places += back.reshape(-1, *places.shape).sum(axis=0)

    def step(self, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-8) -> None:
        """One step of Adam down the gradient, which begins anew."""
        self._num_steps += 1
        gradient, first, second = self._gradient, self._first, self._second
        first += np.float32(1 - beta_1) * (gradient - first)
        second += np.float32(1 - beta_2) * (gradient * gradient - second)
        size = self._rate / (1 - beta_1**self._num_steps)
        root = second / np.float32(1 - beta_2**self._num_steps)
        np.sqrt(root, out=root)
        root += np.float32(epsilon)
        np.divide(np.float32(size) * first, root, out=root)
        self._flat -= root
        self.forget()

    def forget(self) -> None:
        """The gradient begins anew."""
        self._gradient[:] = 0

    def _room(self, num_rows: int) -> list[Floats]:
        """Three arrays for what comes of so many rows: new ones would have to be mapped anew."""
        if num_rows > self._work.shape[1]:
            self._work = np.empty((3, num_rows, HIDDEN), dtype=np.float32)
        return list(self._work[:, :num_rows])

    def _views(self, flat: Floats) -> list[Floats]:
        views, start = [], 0
        for shape in self._shapes:
            size = int(np.prod(shape))
            views.append(flat[start : start + size].reshape(shape))
            start += size
        return views


def _slope_of_tanh(values: Floats) -> Floats:
    """The derivative where tanh has these values, which are overwritten."""
    np.multiply(values, values, out=values)
    slopes: Floats = np.subtract(1, values, out=values)
    return slopes


@dataclass(frozen=True)
class Settings:
    """How an agent learns; the names are those of the searcher's options."""

    epochs: int
    actor_rate: float
    critic_rate: float
    discount: float
    clip: float
    entropy: float


class Agent:
    """An actor that chooses and a critic that foretells what comes of it.

    Schulman, Wolski, Dhariwal, Radford & Klimov 2017, Proximal Policy Optimization Algorithms,
    arXiv:1707.06347, eq. 7, with returns to the end of the episode for eq. 11's advantages (that
    is lambda = 1): there is no reward before.
    """

    def __init__(
        self,
        num_places: int,
        num_features: int,
        num_actions: int,
        settings: Settings,
        generator: np.random.Generator,
    ) -> None:
        sizes = num_places, num_features
        self._settings = settings
        self._actor = Network(*sizes, num_actions, settings.actor_rate, generator)
        self._critic = Network(*sizes, 1, settings.critic_rate, generator)

    def scores(self, place: int, seen: Floats, allowed: NDArray[np.bool_]) -> Floats:
        """Logits of the actions at a place, shape (episodes, actions)."""
        return np.where(allowed, self._actor.at(place, seen), IMPOSSIBLE)

    def learn(self, steps: Steps, rewards: NDArray[np.float64]) -> None:
        """Take in whole episodes; rewards: one at the end of each, shape (episodes,)."""
        settings = self._settings
        lessons = _lessons(steps, self._returns(steps, rewards))
        for epoch in range(settings.epochs):
            for lesson in lessons:
                foretold = self._critic.forward(lesson.steps.seen)[..., 0]
                error = foretold - lesson.returns
                self._critic.backward((error * lesson.weights)[..., None])
                logs, shares = self._log_shares(lesson.steps)
                log_done = logs.take(lesson.done)
                if epoch == 0:
                    lesson.advantages, lesson.before = -error, log_done
                ratio = np.exp(log_done - lesson.before)
                # Where the clipped ratio is the smaller one, nothing is to be gained (eq. 7).
                inside = np.where(
                    lesson.advantages > 0, ratio < 1 + settings.clip, ratio > 1 - settings.clip
                )
                gain = ratio * lesson.advantages * inside * lesson.weights
                surprise = logs - (shares * logs).sum(axis=-1, keepdims=True)
                surprise *= np.float32(settings.entropy) * lesson.weights[..., None] * shares
                slopes = lesson.beside_done(shares)
                slopes *= gain[..., None]
                slopes += surprise
                self._actor.backward(slopes)
            self._actor.step()
            self._critic.step()

    def imitate(self, steps: Steps, times: int, enough: float) -> None:
        """Steps of Adam towards doing what was done (behaviour cloning).

        At most so many, and none once what was done is as probable as `enough`, in the mean.
        """
        lessons = _lessons(steps, np.zeros(steps.done.shape, dtype=np.float32))
        for _ in range(times):
            probable = 0.0
            for lesson in lessons:
                _, shares = self._log_shares(lesson.steps)
                probable += float((shares.take(lesson.done) * lesson.weights).sum())
                self._actor.backward(lesson.beside_done(shares) * lesson.weights[..., None])
            if probable >= enough:
                self._actor.forget()
                return
            self._actor.step()

    def _log_shares(self, steps: Steps) -> tuple[Floats, Floats]:
        """Log probabilities of all actions at all places, and the probabilities."""
        logits = np.where(steps.allowed, self._actor.forward(steps.seen), IMPOSSIBLE)
        logits -= logits.max(axis=-1, keepdims=True)
        shares = np.exp(logits)
        total = shares.sum(axis=-1, keepdims=True)
        logits -= np.log(total)
        shares /= total
        return logits, shares

    def _returns(self, steps: Steps, rewards: NDArray[np.float64]) -> Floats:
        """What every step leads to, shape (episodes, places)."""
        spread = rewards.std()
        standard = (rewards - rewards.mean()) / spread if spread > 0 else np.zeros(len(rewards))
        still_to_go = steps.acted[:, ::-1].cumsum(axis=1)[:, ::-1] - 1
        discounts = self._settings.discount ** np.maximum(still_to_go, 0)
        returns: Floats = (standard[:, None] * discounts).astype(np.float32)
        return returns


class _Lesson:
    """Some whole episodes, and what stays the same of them while they are learnt from.

    weights: what each step counts in the mean over steps; 0 where there was nothing to do.
    done: where in an array of all actions those that were done are, shape (episodes, places).
    """

    advantages: Floats
    before: Floats  # log probabilities of what was done

    def __init__(self, steps: Steps, returns: Floats, weights: Floats) -> None:
        self.steps, self.returns, self.weights = steps, returns, weights
        first = np.arange(steps.done.size).reshape(steps.done.shape) * steps.allowed.shape[2]
        self.done = first + steps.done

    def beside_done(self, shares: Floats) -> Floats:
        """How much more probable actions are than if what was done were certain; overwritten."""
        shares.put(self.done, shares.take(self.done) - 1)
        return shares


def _lessons(steps: Steps, returns: Floats) -> list[_Lesson]:
    """Portions of some episodes."""
    num_episodes, num_places = steps.done.shape
    weights = (steps.acted / max(int(steps.acted.sum()), 1)).astype(np.float32)
    size = max(PORTION // num_places, 1)
    parts = [slice(start, start + size) for start in range(0, num_episodes, size)]
    return [_Lesson(steps[part], returns[part], weights[part]) for part in parts]
