import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import MobileNetV2
from mnv2_jax.data.resident import Batch, training_batch
from mnv2_jax.errors import UserError
from mnv2_jax.models.mobilenet_v2 import Stage
from mnv2_jax.tasks.classification import classification_sums
from mnv2_jax.training import loop
from mnv2_jax.training.config import TrainConfig, batch_norm_momentum
from mnv2_jax.training.loop import compile_programs, evaluate, train
from mnv2_jax.training.metrics import Record, read_records, to_line, write_records
from mnv2_jax.training.optimizer import create_optimizer, decays
from mnv2_jax.training.parallel import seed_groups, seed_mesh
from mnv2_jax.training.step import TrainState, eval_step, init_state, train_step

CONFIG = TrainConfig(epochs=1, batch_size=16, learning_rate=0.02, evaluations=2)
# Two blocks instead of seventeen: compiled in seconds.
NETWORK = MobileNetV2(10, 0.1, unit_strides=1, stages=(Stage(1, 16, 1, 1), Stage(2, 24, 1, 2)))


@pytest.fixture(scope="module")
def programs(tiny):
    return compile_programs(NETWORK, tiny, CONFIG, seed_mesh(2))


def without_times(records):
    return [dataclasses.replace(record, wall_seconds=0, images_per_second=None) for record in records]


# --- Metrics ---------------------------------------------------------------------------------------------


def test_constant_logits_score_exactly_the_share_of_their_class():
    """16 images, 2 of class 0, and logits that are all alike: the tie goes to class 0."""
    labels = jnp.array([0, 0] + [1] * 9 + [2] * 5)
    sums = classification_sums(jnp.zeros((16, 3)), labels, jnp.ones(16))
    assert (float(sums.correct), float(sums.images)) == (2, 16)
    assert float(sums.loss) == pytest.approx(16 * math.log(3))


def test_padding_counts_nowhere():
    logits = jnp.array([[0.0, 9.0], [9.0, 0.0], [0.0, 9.0]])
    sums = classification_sums(logits, jnp.array([1, 1, 1]), jnp.array([1.0, 1.0, 0.0]))
    assert (float(sums.correct), float(sums.images)) == (1, 2)


@pytest.mark.parametrize("batch_size", [7, 16, 50, 64])
def test_the_whole_test_set_counts_whatever_the_batch(programs, tiny, monkeypatch, batch_size):
    """50 images never divide evenly but by 50; sums and count are the same all the same."""

    class ConstantLogits(MobileNetV2):
        def __call__(self, images, train=False):
            return jnp.zeros((len(images), 10)).at[:, 3].set(1.0)

    state = TrainState(jnp.int32(0), jax.random.key(0), {}, {}, ())
    step = jax.jit(lambda batch: eval_step(state, batch, ConstantLogits(10)))
    fake = programs._replace(evaluate=lambda _, batch: jax.tree.map(lambda a: jnp.stack([a, a]), step(batch)))
    monkeypatch.setattr(loop, "EVALUATION_BATCH", batch_size)
    for sums in evaluate(fake, state, tiny.test):
        assert sums.images == 50
        assert sums.correct == np.sum(tiny.test.labels == 3) > 0


# --- Configuration and optimizer -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["epochs", "batch_size", "learning_rate", "evaluations"])
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


def test_learning_rate_warms_up_and_ends_at_zero():
    config = TrainConfig(1, 1, learning_rate=0.5, momentum=0.0, weight_decay=0.0, warmup=0.2)
    optimizer = create_optimizer(config, steps=10)
    params = {"kernel": jnp.zeros(())}
    state, rates = optimizer.init(params), []
    for _ in range(11):
        update, state = optimizer.update({"kernel": jnp.ones(())}, state, params)
        rates.append(-float(update["kernel"]))
    assert rates[:3] == pytest.approx([0, 0.25, 0.5])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[10] == pytest.approx(0)


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
def test_seed_groups(seeds, devices, groups):
    assert seed_groups(range(seeds), devices) == groups


def test_seeds_side_by_side_are_the_runs_that_they_are_alone(programs, tiny):
    together = without_times(train(programs, "a", [3, 5], tiny, CONFIG))
    one = compile_programs(NETWORK, tiny, CONFIG, seed_mesh(1))
    alone = [without_times(train(one, "a", [seed], tiny, CONFIG)) for seed in (3, 5)]
    assert [record for record in together if record.seed == 3] == alone[0]
    assert [record for record in together if record.seed == 5] == alone[1]
    assert alone[0][-1].loss != alone[1][-1].loss


def test_a_run_is_logged_evaluated_and_tested(programs, tiny):
    records = list(train(programs, "a", [0, 1], tiny, CONFIG))
    of_one = [(r.step, r.split, r.images) for r in records if r.seed == 1]
    assert of_one == [
        (2, "train", 32),
        (2, "validation", 30),
        (4, "train", 32),
        (4, "validation", 30),
        (4, "test", 50),
    ]


def test_arms_are_paired_by_seed(tiny):
    """Another activation changes neither the initial weights nor the batches of a seed."""
    states, batches = [], []
    optimizer = create_optimizer(CONFIG, 4)
    examples = jax.tree.map(jnp.asarray, tiny.train)
    for activation in ("linear", "relu6"):
        network = NETWORK.clone(bottleneck_activation=activation)

        @jax.jit
        def start(seed, network=network):
            state = init_state(seed, network, optimizer, tiny.image_shape)
            batch = training_batch(state.data_key, state.step, examples, 16, tiny.augmentation)
            later, _ = train_step(state, batch, network, optimizer)
            return (
                state,
                later.data_key,
                batch,
                training_batch(later.data_key, later.step, examples, 16, tiny.augmentation),
            )

        state, later_key, *both = start(7)
        assert (later_key == state.data_key).all()
        states.append((state.params, state.batch_stats))
        batches.append(both)
    jax.tree.map(np.testing.assert_array_equal, *states)
    jax.tree.map(np.testing.assert_array_equal, *batches)
    assert not np.array_equal(batches[0][0].images, batches[0][1].images)


def test_a_step_lowers_the_loss_on_its_batch(tiny):
    optimizer = create_optimizer(dataclasses.replace(CONFIG, warmup=0.01), 20)
    images = (tiny.train.images[:32] / np.float32(127.5) - 1).astype(np.float32)
    batch = Batch(jnp.asarray(images), jnp.asarray(tiny.train.labels[:32]), jnp.ones(32))
    state = init_state(jnp.int32(0), NETWORK, optimizer, tiny.image_shape)
    step = jax.jit(lambda state: train_step(state, batch, NETWORK, optimizer))
    losses = []
    for _ in range(12):
        state, sums = step(state)
        losses.append(float(sums.loss))
    assert int(state.step) == 12
    assert losses[-1] < 0.7 * losses[0]


def test_a_loss_that_is_no_number_stops_the_run_and_says_so(programs, tiny):
    def broken(state, examples):
        state, sums = programs.train(state, examples)
        return state, sums._replace(loss=sums.loss * np.nan)

    with pytest.raises(UserError, match="loss of arm a is not a number by step 2; take a smaller --learning-rate"):
        list(train(programs._replace(train=broken), "a", [0, 1], tiny, CONFIG))


# --- Files -----------------------------------------------------------------------------------------------

RECORD = Record("linear", 0, 10, "train", 1.5, 0.25, 0.75, 160, 99.0)


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
