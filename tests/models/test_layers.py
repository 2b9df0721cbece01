import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax.models.layers import (
    ACTIVATIONS,
    CONVENTIONS,
    BatchNorm,
    Conv,
    ConvNorm,
    Dropout,
    activation_name,
    find_activation,
    make_divisible,
    relu6,
    switch_activation,
)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(
    ("value", "expected"),
    # 32 * 0.35 = 11.2 becomes 16, since 8 would lose 29 %; 24 * 0.35 = 8.4 becomes 8.
    [(11.2, 16), (8.4, 8), (3, 8), (12, 16), (20, 24), (1792, 1792), (96 * 0.75, 72), (24 * 1.4, 32)],
)
def test_make_divisible(value, expected):
    assert make_divisible(value) == expected


def test_make_divisible_never_loses_more_than_a_tenth():
    values = np.arange(1, 400) * 0.35
    rounded = [make_divisible(value) for value in values]
    assert all(result % 8 == 0 and result >= 0.9 * value for value, result in zip(values, rounded, strict=True))


@pytest.mark.parametrize("value", [0, -8])
def test_make_divisible_refuses_what_is_no_width(value):
    with pytest.raises(ValueError, match="positive"):
        make_divisible(value)


def test_relu6_and_its_derivative():
    x = jnp.array([-1.0, 0.0, 3.0, 6.0, 7.0])
    np.testing.assert_array_equal(relu6(x), [0, 0, 3, 6, 6])
    np.testing.assert_array_equal(jax.vmap(jax.grad(relu6))(x), [0, 0, 1, 0, 0])


@pytest.mark.parametrize(("stride", "expected"), [(1, (1, 1)), (2, (0, 1))])
def test_tensorflow_padding_of_an_even_input(stride, expected):
    assert CONVENTIONS["tensorflow"].padding(28, 3, stride) == expected


def test_tensorflow_padding_of_an_odd_input_is_symmetric():
    assert CONVENTIONS["tensorflow"].padding(7, 3, 2) == (1, 1) == CONVENTIONS["pytorch"].padding(8, 3, 2)


def test_batch_norm_of_bfloat16_has_float32_statistics():
    x = (normal(0, 64, 8, 8, 3) * 3 + 100).astype(jnp.bfloat16)
    norm = BatchNorm(momentum=0.0)
    variables = norm.init(jax.random.key(0), x, train=False)
    y, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], wide.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["var"], wide.var((0, 1, 2)), rtol=1e-2)


@pytest.mark.parametrize("form", ["tuned", "xla"])
def test_xla_kernels_are_native_convolutions_with_derivatives_of_jax(form):
    x = normal(0, 2, 8, 8, 4)
    model = ConvNorm(4, 3, depthwise=True, kernels=form)
    variables = model.init(jax.random.key(0), x, train=False)
    step = jax.make_jaxpr(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"])[0])
    text = str(step(x))
    assert "conv_general_dilated" in text
    assert ("custom_vjp" in text) is (form == "tuned")
    assert ("platform_index" in text) is (form == "tuned")


def test_of_several_activations_a_traced_number_chooses():
    x = jnp.array([-1.0, 3.0, 8.0])
    apply = jax.jit(lambda choice, x: switch_activation(("linear", "relu6", jnp.abs), choice)(x))
    assert [apply(choice, x).tolist() for choice in range(3)] == [[-1, 3, 8], [0, 3, 6], [1, 3, 8]]


def test_an_activation_is_a_name_or_a_function():
    assert find_activation("relu6") is find_activation(relu6) is relu6
    assert find_activation("linear")(jnp.float32(-7.0)) == -7
    with pytest.raises(
        ValueError, match="unknown activation 'relu7'; choose from linear, relu6, .*, tanh; pass a custom activation"
    ):
        find_activation("relu7")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_name_of_an_activation_is_the_table_s(name):
    assert activation_name(ACTIVATIONS[name]) == activation_name(name) == name


def test_an_activation_of_one_s_own_has_the_name_of_its_module_and_function():
    assert activation_name(jax.nn.mish) == "jax._src.nn.functions.mish"
    assert activation_name(normal) == f"{__name__}.normal"


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("form", ["tuned", "xla"])
def test_batch_norm_is_flax_batch_norm(train, form):
    x, direction = 3 * normal(0, 4, 5, 6, 3) + 1, normal(1, 4, 5, 6, 3)
    parameters = {"scale": jnp.array([0.5, 1, 2]), "bias": jnp.array([0.0, 1, -1])}
    statistics = {"mean": jnp.array([0.1, 0.2, 0.3]), "var": jnp.array([1.0, 2, 3])}

    def run(module, **how):
        def loss(params, x):
            variables = {"params": params, "batch_stats": statistics}
            y, updates = module.apply(variables, x, mutable=["batch_stats"], **how)
            return jnp.sum(y * direction), (y, updates["batch_stats"])

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(parameters, x)

    ours = run(BatchNorm(momentum=0.9, epsilon=1e-3, kernels=form), train=train)
    flax = run(nn.BatchNorm(momentum=0.9, epsilon=1e-3), use_running_average=not train)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, flax)


def test_a_frozen_norm_trains_as_it_evaluates_and_keeps_its_statistics():
    x = 3 * normal(0, 4, 5, 6, 3) + 1
    variables = {
        "params": {"scale": jnp.array([0.5, 1, 2]), "bias": jnp.array([0.0, 1, -1])},
        "batch_stats": {"mean": jnp.array([0.1, 0.2, 0.3]), "var": jnp.array([1.0, 2, 3])},
    }
    y, updates = BatchNorm(frozen=True).apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, BatchNorm().apply(variables, x, False))
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])


def test_what_dropout_drops_depends_on_the_index_in_the_global_batch():
    x, key = jnp.ones((6, 40)), jax.random.key(0)
    layer = Dropout(0.5)

    def drop(x, *index):
        return np.asarray(layer.apply({}, x, True, *index, rngs={"dropout": key}))

    whole = drop(x)
    np.testing.assert_array_equal(drop(x, jnp.arange(6)), whole)
    np.testing.assert_array_equal(drop(x[:2], jnp.array([4, 1])), whole[[4, 1]])
    assert set(np.unique(whole)) == {0, 2}
    assert len(np.unique(whole, axis=0)) == 6
    np.testing.assert_array_equal(layer.apply({}, x, False), x)


@pytest.mark.parametrize(
    ("convention", "depthwise", "deviation"),
    # Truncated normal 0.09, uncorrected: 0.09 * 0.8796. Kaiming fan-out: sqrt(2 / 64) and sqrt(2 / (9 * 64)).
    [
        ("tensorflow", False, 0.0792),
        ("tensorflow", True, 0.0792),
        ("pytorch", False, (2 / (9 * 64)) ** 0.5),
        ("pytorch", True, (2 / (9 * 64)) ** 0.5),
    ],
)
def test_initial_kernels(convention, depthwise, deviation):
    conv = Conv(64, 3, depthwise=depthwise, convention=convention)
    kernels = [conv.init(jax.random.key(seed), jnp.zeros((1, 4, 4, 64)))["params"]["kernel"] for seed in range(8)]
    assert kernels[0].shape == (3, 3, 1 if depthwise else 64, 64)
    assert np.std(np.stack(kernels)) == pytest.approx(deviation, rel=0.05)


def test_an_epsilon_of_its_own_takes_the_place_of_the_convention_s():
    x = jnp.ones((1, 2, 2, 1))
    for own, used in ((None, 1e-3), (0.5, 0.5)):
        layer = ConvNorm(1, activation="linear", batch_norm_epsilon=own)
        variables = layer.init(jax.random.key(0), x, False)
        plain = Conv(1).apply({"params": variables["params"]["conv"]}, x)
        np.testing.assert_allclose(layer.apply(variables, x, False), plain / np.sqrt(1 + used), rtol=1e-6)
        slope, _ = layer.bind(variables).inference_norm()
        np.testing.assert_allclose(slope, 1 / np.sqrt(1 + used), rtol=1e-6)
