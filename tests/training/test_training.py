import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnv2_jax import MobileNetV2
from mnv2_jax.data.batch import Batch
from mnv2_jax.data.resident import ResidentData
from mnv2_jax.errors import UserError
from mnv2_jax.models.mobilenet_v2 import Stage
from mnv2_jax.tasks.classification import Classification
from mnv2_jax.training import loop
from mnv2_jax.training.config import RECIPES, TrainConfig, batch_norm_momentum
from mnv2_jax.training.loop import Logged, compile_programs, evaluate, evaluate_network, train
from mnv2_jax.training.metrics import Record, read_records, to_line, write_records
from mnv2_jax.training.optimizer import create_optimizer, create_schedule, decays
from mnv2_jax.training.parallel import DATA, REPLICATED, SEED, create_mesh, group_size, lower_program, place, run_groups
from mnv2_jax.training.step import Learner, init_state, train_step

CONFIG = TrainConfig(epochs=1, batch_size=16, learning_rate=0.02, evaluations=2)
# Two blocks instead of seventeen: compiled in seconds.
NETWORK = MobileNetV2(10, 0.1, unit_strides=1, stages=(Stage(1, 16, 1, 1), Stage(2, 24, 1, 2)))
STEPS_PER_EPOCH = 4


def learner_of(network=NETWORK, config=CONFIG, **changes):
    task = Classification(10, config.label_smoothing)
    return Learner(network, task, create_optimizer(config, 16 * STEPS_PER_EPOCH), config.accumulation, **changes)


@pytest.fixture(scope="module")
def programs(tiny):
    return compile_programs(learner_of(), tiny, CONFIG, create_mesh(2, 1))


# --- Metrics ---------------------------------------------------------------------------------------------


def sums(logits, labels, weights=None, **task):
    logits = jnp.asarray(logits)
    count = len(labels)
    weights = jnp.ones(count) if weights is None else jnp.asarray(weights)
    batch = Batch(jnp.zeros((count, 1, 1, 1)), jnp.asarray(labels), weights, jnp.arange(count))
    return Classification(logits.shape[1], **task).sums(logits, batch, train=bool(task))


def test_constant_logits_score_exactly_the_share_of_their_class():
    """16 images, 2 of class 0, and logits that are all alike: the tie goes to class 0, and five of eight to the five."""
    found = sums(jnp.zeros((16, 8)), [0, 0] + [1] * 9 + [5] * 5)
    assert (float(found["correct"]), float(found["correct_top5"]), float(found["examples"])) == (2, 11, 16)
    assert float(found["loss"]) == pytest.approx(16 * math.log(8))


def test_padding_counts_nowhere():
    found = sums([[0.0, 9.0], [9.0, 0.0], [0.0, 9.0]], [1, 1, 1], [1.0, 1.0, 0.0])
    assert (float(found["correct"]), float(found["examples"])) == (1, 2)


def test_logits_that_are_no_numbers_are_never_right():
    found = sums([[math.nan] * 3, [0.0, math.nan, 1.0]], [0, 2])
    assert float(found["correct"]) == 0


def test_label_smoothing_is_of_training():
    """0.3 over three classes leaves the target 0.8; log-softmax of (0, 0, 0) is -log 3 whatever the target."""
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    found = sums(logits, [0], label_smoothing=0.3)
    assert float(found["loss"]) == pytest.approx(-(0.8 * math.log(0.5) + 0.2 * math.log(0.25)))


@pytest.mark.parametrize(("batch_size", "processes"), [(7, 1), (16, 1), (50, 1), (64, 1), (16, 2), (50, 2), (64, 2)])
def test_the_whole_test_set_counts_whatever_the_batch(tiny, batch_size, processes):
    """50 images never divide evenly but by 50; the processes' parts of every batch are the whole, and no more."""
    parts = [list(tiny.evaluation("test", batch_size, part, processes)) for part in range(processes)]
    assert len({len(part) for part in parts}) == 1
    batches = [jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces) for pieces in zip(*parts, strict=True)]
    assert {len(batch.labels) for batch in batches} == {batch_size}
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    kept = whole.weights == 1
    assert kept.sum() == 50
    np.testing.assert_array_equal(whole.labels[kept], tiny.test.labels)
    np.testing.assert_array_equal(whole.images[kept], tiny.normalization(tiny.test.images))


def test_a_constant_network_scores_what_it_must_on_eight_devices(tiny, monkeypatch):
    class ConstantLogits(MobileNetV2):
        def __call__(self, images, train=False, places=None):
            return jnp.zeros((len(images), 10)).at[:, 3].set(1.0)

    variables = {"params": {}, "batch_stats": {}}
    for size in (16, 64):
        monkeypatch.setattr(loop, "EVALUATION_BATCH", size)
        metrics = evaluate_network(ConstantLogits(10), variables, Classification(10), tiny, "test")
        assert metrics["examples"] == 50
        assert metrics["accuracy"] == np.mean(tiny.test.labels == 3) > 0


# --- Configuration and optimizer -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["epochs", "batch_size", "learning_rate", "evaluations", "accumulation"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_must_be_positive(name, value):
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} must be greater than 0, got {value}"):
        dataclasses.replace(CONFIG, **{name: value})


def test_a_batch_must_fit_the_training_set():
    assert TrainConfig(3, 16, 0.1).steps(70) == 12
    with pytest.raises(UserError, match="--batch-size 16 is more than the 15 images"):
        TrainConfig(3, 16, 0.1).steps(15)


@pytest.mark.parametrize(("steps", "momentum"), [(1, 0.5), (100, 0.9), (1000, 0.99), (10**6, 0.999)])
def test_batch_norm_momentum_suits_the_length_of_the_run(steps, momentum):
    assert batch_norm_momentum(steps) == pytest.approx(momentum)


def test_weight_decay_spares_depthwise_kernels_norms_and_biases(tiny):
    variables = jax.eval_shape(MobileNetV2(10).init, jax.random.key(0), jnp.zeros((1, *tiny.image_shape)))
    decayed = {
        "/".join(entry.key for entry in path)
        for path, on in jax.tree_util.tree_leaves_with_path(decays(variables["params"]))
        if on
    }
    # The stem, the head, the classifier; 17 projections; 16 expansions.
    assert len(decayed) == 3 + 17 + 16
    assert {"stem/conv/kernel", "classifier/kernel", "block_1/expand/conv/kernel"} <= decayed
    assert not [name for name in decayed if "depthwise" in name or not name.endswith("kernel")]


def rates_of(config, steps_per_epoch, count):
    """The learning rates that plain gradient descent really uses."""
    config = dataclasses.replace(config, optimizer="sgd", momentum=0.0, weight_decay=0.0)
    optimizer = create_optimizer(config, config.batch_size * steps_per_epoch)
    params = {"kernel": jnp.zeros(())}
    state, rates = optimizer.init(params), []
    for _ in range(count):
        update, state = optimizer.update({"kernel": jnp.ones(())}, state, params)
        rates.append(-float(update["kernel"]))
    return rates


def test_learning_rate_warms_up_and_ends_at_zero():
    rates = rates_of(TrainConfig(1, 1, learning_rate=0.5, warmup=0.2), 10, 11)
    assert rates[:3] == pytest.approx([0, 0.25, 0.5])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[10] == pytest.approx(0)


def test_the_papers_learning_rate():
    """0.045 for each 96 images of a step, 2 % less after every epoch."""
    rates = rates_of(RECIPES["paper"], 10, 25)
    assert rates[:10] == pytest.approx([0.045 * 8] * 10)
    assert rates[10:20] == pytest.approx([0.045 * 8 * 0.98] * 10)
    assert rates[20] == pytest.approx(0.045 * 8 * 0.98**2)


def test_the_cosine_recipe():
    rates = rates_of(RECIPES["cosine"], 2, 301)
    assert rates[0] == pytest.approx(0.05)
    assert rates[150] == pytest.approx(0.025)
    assert rates[300] == pytest.approx(0, abs=1e-9)


def test_an_exponential_schedule_after_a_warmup():
    config = TrainConfig(4, 1, learning_rate=1.0, schedule="exponential", epoch_decay=0.5, warmup=0.5)
    assert rates_of(config, 2, 8) == pytest.approx([0, 0.25, 0.5, 0.75, 0.25, 0.25, 0.125, 0.125])


def test_rmsprop_is_tensorflows():
    """ms = 0.9 ms + 0.1 g^2 from 1; mom = 0.9 mom + lr g / sqrt(ms + epsilon); var -= mom; g holds the L2 penalty."""
    config = dataclasses.replace(RECIPES["paper"], batch_size=96)
    optimizer = create_optimizer(config, 96_000)
    params = {"kernel": jnp.array([0.5, -2.0]), "bias": jnp.array([1.0])}
    state = optimizer.init(params)
    expected = {name: np.asarray(value, np.float64) for name, value in params.items()}
    ms = {name: np.ones_like(value) for name, value in expected.items()}
    momentum = {name: np.zeros_like(value) for name, value in expected.items()}
    for step in range(4):
        gradients = {"kernel": jnp.array([0.3, 4.0]) * (step + 1), "bias": jnp.array([-2.0])}
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name in expected:
            g = np.asarray(gradients[name], np.float64) + (4e-5 * expected[name] if name == "kernel" else 0)
            ms[name] = 0.9 * ms[name] + 0.1 * g**2
            momentum[name] = 0.9 * momentum[name] + 0.045 * g / np.sqrt(ms[name] + 1.0)
            expected[name] -= momentum[name]
            np.testing.assert_allclose(params[name], expected[name], rtol=1e-6)


def test_weight_decay_of_the_cosine_recipe_is_on_everything():
    optimizer = create_optimizer(dataclasses.replace(RECIPES["cosine"], momentum=0.0), 2560)
    params = {"depthwise": {"kernel": jnp.ones(())}, "norm": {"scale": jnp.full((), 2.0)}}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert float(updates["depthwise"]["kernel"]) == pytest.approx(-0.05 * 4e-5)
    assert float(updates["norm"]["scale"]) == pytest.approx(-0.05 * 4e-5 * 2)


def test_schedules_are_known_to_who_logs_them():
    config = TrainConfig(2, 1, learning_rate=0.5)
    assert [float(create_schedule(config, 5)(step)) for step in range(10)] == pytest.approx(rates_of(config, 5, 10))


# --- Seeds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seeds", "devices", "groups"),
    [
        (6, 1, [(0,), (1,), (2,), (3,), (4,), (5,)]),
        (6, 8, [(0, 1, 2, 3, 4, 5)]),
        (6, 4, [(0, 1, 2), (3, 4, 5)]),
        (7, 4, [(0, 1, 2, 3), (4, 5, 6, 6)]),
        (0, 4, []),
    ],
)
def test_run_groups(seeds, devices, groups):
    assert run_groups(range(seeds), group_size(seeds, devices)) == groups


def records_of(programs, seeds, steps=4, evaluated=None):
    state = programs.start(seeds)
    for event in train(programs, state, 0, range(steps), 2, {2, 4}):
        if isinstance(event, Logged):
            yield event.step, event.metrics
        elif evaluated is not None:
            batches = evaluated.evaluation("validation", 256)
            yield event.step, evaluate(programs, event.state, batches)


def test_seeds_side_by_side_are_the_runs_that_they_are_alone(programs, tiny):
    together = list(records_of(programs, [3, 5], evaluated=tiny))
    one = compile_programs(learner_of(), tiny, CONFIG, create_mesh(1, 1))
    alone = [list(records_of(one, [seed], evaluated=tiny)) for seed in (3, 5)]
    for index in (0, 1):
        assert [(step, metrics[index]) for step, metrics in together] == [(s, m) for s, (m,) in alone[index]]
    assert alone[0][-1] != alone[1][-1]
    assert [step for step, _ in together] == [2, 2, 4, 4]
    assert [metrics[0]["examples"] for _, metrics in together] == [32, 30, 32, 30]


def test_plain_layers_train_to_the_same_weights(tiny):
    """Within 1e-5 after five steps, as the fitted ones are the same function.

    The steps are small: where rounding puts a value on the other side of a corner of ReLU6, its gradient jumps.
    """
    config, weights = dataclasses.replace(CONFIG, learning_rate=0.001), []
    for form in ("fitted", "plain"):
        network = MobileNetV2(10, 0.1, unit_strides=1, stages=(*NETWORK.stages, Stage(6, 24, 1, 1)), layers=form)
        programs = compile_programs(learner_of(network, config), tiny, config, create_mesh(1, 1))
        *_, last = train(programs, programs.start([0]), 0, range(5), 5, ())
        weights.append(jax.device_get(last.state.params))
    start = jax.device_get(programs.start([0]).params)
    jax.tree.map(lambda ours, plain: np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-5), *weights)
    moved = jax.tree.map(lambda before, after: np.abs(after - before).max(), start, weights[0])
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_networks_that_share_a_program_are_those_that_have_their_own(tiny):
    """Runs that choose between two activations, beside each network compiled alone."""
    both = learner_of(NETWORK.clone(bottleneck_activation=("linear", "relu6")), choices=2)
    shared = compile_programs(both, tiny, CONFIG, create_mesh(2, 1))
    together = [metrics for _, metrics in logged(shared, shared.start([3, 3], [0, 1]))]
    for index, activation in enumerate(("linear", "relu6")):
        learner = learner_of(NETWORK.clone(bottleneck_activation=activation))
        alone = compile_programs(learner, tiny, CONFIG, create_mesh(1, 1))
        for step, (_, (metrics,)) in enumerate(logged(alone, alone.start([3]))):
            assert together[step][index] == pytest.approx(metrics, rel=1e-5)
    assert together[-1][0]["loss"] != together[-1][1]["loss"]


def logged(programs, state):
    return [
        (event.step, event.metrics) for event in train(programs, state, 0, range(4), 2, ()) if isinstance(event, Logged)
    ]


def test_arms_are_paired_by_seed(tiny):
    """Another activation changes neither the initial weights nor the batches of a seed."""
    states, batches = [], []
    data = ResidentData(tiny, 16)
    examples = jax.tree.map(jnp.asarray, tiny.train)
    mesh = create_mesh(1, 1)
    for activation in ("linear", "relu6"):
        learner = learner_of(NETWORK.clone(bottleneck_activation=activation))

        def start(seed, examples, learner=learner):
            state = init_state(seed, learner, tiny.image_shape)
            batch = data.batch(examples, state.seed, state.step, jnp.arange(16))
            later, _ = train_step(state, batch, learner)
            return state, batch, data.batch(examples, later.seed, later.step, jnp.arange(16))

        seeds = place(np.array([7], np.int32), mesh, SEED)
        examples_there = place(examples, mesh, REPLICATED)
        arguments = [seeds, examples_there]
        state, *both = lower_program(start, mesh, [SEED, REPLICATED], arguments).compile()(*arguments)
        states.append((state.params, state.batch_stats))
        batches.append(both)
    jax.tree.map(np.testing.assert_array_equal, *states)
    jax.tree.map(np.testing.assert_array_equal, *batches)
    assert not np.array_equal(batches[0][0].images, batches[0][1].images)


def test_steps_lower_the_loss_on_their_batch(tiny):
    learner = learner_of(config=dataclasses.replace(CONFIG, epochs=5, warmup=0.01))
    images = tiny.normalization(tiny.train.images[:32])
    batch = Batch(images, tiny.train.labels[:32], np.ones(32, np.float32), np.arange(32, dtype=np.int32))
    mesh = create_mesh(1, 1)
    state = place(
        jax.tree.map(lambda leaf: leaf[None], init_state(jnp.int32(0), learner, tiny.image_shape)), mesh, SEED
    )
    batch = place(batch, mesh, DATA)
    step = lower_program(lambda s, b: train_step(s, b, learner), mesh, [SEED, DATA], [state, batch]).compile()
    losses = []
    for _ in range(12):
        state, found = step(state, batch)
        losses.append(float(found["loss"][0]))
    assert int(state.step[0]) == 12
    assert losses[-1] < 0.7 * losses[0]


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(programs):
    """Here of the third step; what is logged of the first two comes before."""

    def broken(state, totals, value):
        state, totals, token = programs.train(state, totals, value)
        bad = int(state.step[0]) >= 3
        return state, {**totals, "finite_steps": totals["finite_steps"] - (1.0 if bad else 0.0)}, token

    events = train(dataclasses.replace(programs, train=broken), programs.start([0, 1]), 0, range(4), 2, {4})
    assert next(events).step == 2
    with pytest.raises(UserError, match="the loss of step 3 is not a finite number; take a smaller --learning-rate"):
        list(events)


# --- Files -----------------------------------------------------------------------------------------------

RECORD = Record("linear", 0, 10, "train", 1.5, {"loss": 0.25, "accuracy": 0.75}, 160, 99.0)


def test_records_survive_the_file_and_a_line_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_records(path) == []
    write_records(path, [RECORD, dataclasses.replace(RECORD, seed=1)])
    with path.open("a") as file:
        file.write(to_line(RECORD)[:20])
    assert read_records(path) == [RECORD, dataclasses.replace(RECORD, seed=1)]


def test_a_line_that_is_no_record_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(to_line(RECORD) + "{}\n")
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2, is no record"):
        read_records(path)
