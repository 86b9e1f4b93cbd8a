"""The correction: nothing at first, never beyond its scale, and the same however often it is killed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sarm2_client.errors import InvalidInput
from sarm2_spiral.config import PUBLISHED
from sarm2_spiral.replay import Replay
from sarm2_spiral.residual import Learner
from sarm2_spiral.residual_update import ResidualUpdate
from spiral.small_data import SMALL, trajectory


def make_learner(seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    return Learner(2, 1, SMALL.update)


def make_replay() -> Replay:
    return Replay([trajectory(seed, demo=seed < 4) for seed in range(12)], SMALL.update)


def test_a_fresh_learner_corrects_nothing() -> None:
    learner = make_learner()
    base_BK = torch.rand(5, 1) * 2 - 1
    torch.testing.assert_close(learner.corrected(torch.rand(5, 2), base_BK), base_BK)


def test_a_correction_stays_within_its_scale_and_the_sum_within_the_actions_range() -> None:
    learner = make_learner()
    with torch.no_grad():
        learner.actor.net[-1].weight.fill_(100.0)  # type: ignore[operator]
    base_BK = torch.linspace(-1, 1, 9)[:, None]
    sum_BK = learner.corrected(torch.ones(9, 2), base_BK)
    assert (sum_BK - base_BK).abs().max() <= SMALL.update.scale + 1e-6
    assert sum_BK.abs().max() <= 1


def test_critics_are_independent_of_one_another_and_of_their_batch_mates() -> None:
    learner = make_learner()
    features_BF, chunk_BK = torch.rand(6, 2), torch.rand(6, 1)
    value_NB = learner.critics(features_BF, chunk_BK).detach()
    assert value_NB.shape == (3, 6)
    alone_N = learner.critics(features_BF[2:3], chunk_BK[2:3])[:, 0]
    torch.testing.assert_close(alone_N.detach(), value_NB[:, 2])
    assert len({round(float(value), 6) for value in value_NB[:, 0]}) == 3
    grads = torch.autograd.grad(
        learner.critics(features_BF, chunk_BK)[1].sum(), list(learner.critics.parameters())
    )
    assert all(grad[[0, 2]].abs().max() == 0 for grad in grads)


def test_the_best_of_several_chunks_is_the_one_that_the_least_critic_prefers() -> None:
    learner = make_learner()
    base_MK = torch.tensor([[-0.5], [0.0], [0.9]])
    features_F = torch.tensor([0.3, 1.0])
    value_M = learner.critics(features_F.expand(3, 2), base_MK).min(0).values
    torch.testing.assert_close(learner.best(features_F, base_MK), base_MK[value_M.argmax()])


def test_critics_learn_alone_before_the_actor_moves() -> None:
    learner, replay = make_learner(), make_replay()
    before = {name: value.clone() for name, value in learner.actor.state_dict().items()}
    training = ResidualUpdate(learner, SMALL.update, seed=1)
    training.run(replay, until=10, critic_only_until=10)
    assert all((before[name] == value).all() for name, value in learner.actor.state_dict().items())
    training.run(replay, until=20, critic_only_until=10)
    assert any((before[name] != value).any() for name, value in learner.actor.state_dict().items())


def test_the_update_learns_to_step_forward_on_a_line() -> None:
    """Progress grows with the step: the correction must point forward while there is something to gain."""
    config = replace(SMALL.update, learning_rate=3e-3)
    torch.manual_seed(0)
    learner = Learner(2, 1, config)
    ResidualUpdate(learner, config, seed=0).run(make_replay(), until=400, critic_only_until=50)
    places_BF = torch.stack([torch.linspace(0, 0.6, 7), torch.ones(7)], dim=1)
    residual_BK = learner.actor(places_BF, torch.full((7, 1), 0.2))
    assert residual_BK.mean() > 0.1


def test_a_killed_update_that_goes_on_ends_with_the_same_weights(tmp_path: Path) -> None:
    replay = make_replay()
    whole = make_learner()
    ResidualUpdate(whole, SMALL.update, seed=3).run(replay, until=30, critic_only_until=5)
    path = tmp_path / "learner.checkpoint.safetensors"
    ResidualUpdate(make_learner(), SMALL.update, seed=3, path=path).run(replay, until=13, critic_only_until=5)
    resumed = make_learner(seed=99)  # whatever it was: the checkpoint decides
    training = ResidualUpdate(resumed, SMALL.update, seed=3, path=path)
    assert training.step == 13
    training.run(replay, until=30, critic_only_until=5)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_a_checkpoint_of_other_sizes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "learner.checkpoint.safetensors"
    ResidualUpdate(make_learner(), SMALL.update, seed=0, path=path).run(
        make_replay(), until=2, critic_only_until=0
    )
    other = Learner(3, 1, SMALL.update)
    with pytest.raises(InvalidInput, match="other sizes"):
        ResidualUpdate(other, SMALL.update, seed=0, path=path)


def test_the_target_uses_the_slow_networks_and_bounded_noise() -> None:
    learner, config = make_learner(), SMALL.update
    training = ResidualUpdate(learner, config, seed=0)
    batch = make_replay().at(np.array([0, 3]))
    with torch.no_grad():
        for parameter in learner.critics.parameters():
            parameter.add_(10.0)  # the fast critics are far off; the slow ones have not followed
    later_NB = torch.stack(
        [learner.slow_critics(batch.later_BF, batch.later_base_BMK[:, latent]) for latent in range(2)]
    ).flatten(0, 1)
    target_B = training.target(batch)
    bound_B = batch.partial_B + batch.discount_B * later_NB.max(0).values
    assert (target_B < bound_B + 0.2).all()


def test_the_target_is_the_formula_with_one_latent_and_clipped_noise() -> None:
    config = replace(SMALL.update, alpha=0.25, smoothing=0.4, smoothing_clip=0.5)
    torch.manual_seed(0)
    learner = Learner(2, 1, config)
    torch.nn.init.normal_(learner.slow_actor.net[-1].weight)  # type: ignore[arg-type]  # a Linear
    batch = make_replay().at(np.array([0, 3, 7]))
    torch.manual_seed(4)
    found_B = ResidualUpdate(learner, config, seed=0).target(batch)
    torch.manual_seed(4)
    latent_B = torch.randint(batch.later_base_BMK.shape[1], (3,))
    base_BK = batch.later_base_BMK[torch.arange(3), latent_B]
    limit = 0.5 * config.scale
    noise_BK = (0.4 * config.scale * torch.randn_like(base_BK)).clamp(-limit, limit)
    with torch.no_grad():
        chunk_BK = (base_BK + learner.slow_actor(batch.later_BF, base_BK) + noise_BK).clamp(-1, 1)
        later_B = learner.slow_critics(batch.later_BF, chunk_BK).min(0).values
    expected_B = 0.25 * batch.monte_carlo_B + 0.75 * (batch.partial_B + batch.discount_B * later_B)
    torch.testing.assert_close(found_B, expected_B)


def test_the_actors_loss_is_the_mean_over_all_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    learner = Learner(2, 1, SMALL.update)
    torch.nn.init.normal_(learner.actor.net[-1].weight)  # type: ignore[arg-type]  # a Linear
    training, batch = ResidualUpdate(learner, SMALL.update, seed=0), make_replay().at(np.array([0, 3, 7]))
    losses: list[torch.Tensor] = []
    monkeypatch.setattr(training, "_descend", lambda name, loss: losses.append(loss))
    training._actor(batch)
    by_latent = []
    for latent in range(batch.base_BMK.shape[1]):
        base_BK = batch.base_BMK[:, latent]
        residual_BK = learner.actor(batch.features_BF, base_BK)
        value_B = learner.critics(batch.features_BF, (base_BK + residual_BK).clamp(-1, 1)).min(0).values
        by_latent.append((-value_B + SMALL.update.beta * residual_BK.square().sum(1)).mean())
    assert len(by_latent) > 1
    torch.testing.assert_close(losses[0], torch.stack(by_latent).mean())


def test_the_published_preset_has_the_publications_constants() -> None:
    update = PUBLISHED.update
    assert (update.alpha, update.gamma, update.beta, update.tau) == (0.5, 0.9995, 30.0, 0.005)
    assert (update.learning_rate, update.batch, update.updates) == (1e-4, 16, 10_000)
    assert (update.critics, update.width, update.layers, update.scale) == (5, 1024, 3, 0.1)
    assert (update.latents, update.smoothing, update.smoothing_clip) == (4, 0.2, 0.5)
    assert update.monte_carlo == "final_progress"
    assert PUBLISHED.loop.rounds == 3
    assert 50 <= PUBLISHED.loop.rollouts <= 100


def test_the_slow_networks_follow_by_tau_a_step() -> None:
    learner = make_learner()
    before = [parameter.clone() for parameter in learner.slow_critics.parameters()]
    with torch.no_grad():
        for parameter in [*learner.critics.parameters(), *learner.actor.parameters()]:
            parameter.add_(1.0)
    learner.follow()
    for old, slow in zip(before, learner.slow_critics.parameters(), strict=True):
        torch.testing.assert_close(slow, old + SMALL.update.tau)
        assert not slow.requires_grad
    moved = zip(learner.slow_actor.parameters(), learner.actor.parameters(), strict=True)
    for slow, fast in moved:
        torch.testing.assert_close(slow, fast - 1.0 + SMALL.update.tau)
