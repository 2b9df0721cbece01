"""Parsing of compiled programs' text and of the compiler's errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from mnv2_jax.plan.compiled import Collective, collectives, needed_bytes, shape_bytes, traffic_bytes
from mnv2_jax.training.devices import Devices


@pytest.mark.parametrize(
    ("shapes", "size"),
    [
        ("f32[]", 4),
        ("f32[144]{0:T(256)S(1)}", 576),
        ("bf16[2,3,4]{2,1,0}", 48),
        ("(f32[3,3,1,16]{3,2,1,0:T(1,128)S(1)}, f32[]{:T(128)}, /*index=5*/bf16[8]{0})", 576 + 4 + 16),
    ],
)
def test_bytes_of_shapes(shapes, size):
    assert shape_bytes(shapes) == size


def test_collectives_of_a_program():
    """From XLA's real output for eight devices."""
    mesh = Devices.create(2, 4).mesh

    def on_device(x):
        total = lax.psum(x, "data")
        return lax.ppermute(total, "seed", [(0, 1), (1, 0)])

    spec = PartitionSpec("seed", "data")
    mapped = jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    text = mapped.lower(jnp.zeros((2, 400))).compile().as_text()
    # Each device holds one row of 100 numbers.
    assert sorted(collectives(text, 8), key=str) == [
        Collective("all-reduce", 400, 4),
        Collective("collective-permute", 400, 8),
    ]
    alone = jax.jit(lambda x: x + 1).lower(jnp.zeros(4)).compile().as_text()
    assert list(collectives(alone, 1)) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%a = f32[10]{0} all-reduce(%b), replica_groups=[2,4]<=[8], to_apply=%r", Collective("all-reduce", 40, 4)),
        ("%a = f32[10]{0} all-gather-start(%b), replica_groups={{0,1}}", Collective("all-gather", 40, 2)),
        (
            "%a = f32[10]{0} all-reduce(%b), replica_groups=mesh['seed'=2,'data'=4] {'data'}, to_apply=%r",
            Collective("all-reduce", 40, 4),
        ),
        ("%a = bf16[10]{0} all-reduce(%b), replica_groups={}", Collective("all-reduce", 20, 16)),
    ],
)
def test_groups_are_written_in_four_ways(line, expected):
    assert list(collectives(line, 16)) == [expected]
    assert list(collectives(line.replace("all-", "get-tuple-element(%all-"), 16)) == []


def test_what_a_chip_sends():
    assert Collective("all-reduce", 800, 8).sent_bytes() == 1400
    assert Collective("all-gather", 800, 8).sent_bytes() == 700
    assert Collective("all-reduce", 800, 1).sent_bytes() == 0


def test_how_much_a_program_wanted():
    gibibyte = 2**30
    refused = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (298.12G) exceeds available HBM (15.75G)."
    assert needed_bytes(refused) == int(298.12 * gibibyte)
    other = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.14G of 15.75G hbm. Exceeded hbm capacity by 1.4G."
    assert needed_bytes(other) == int(17.14 * gibibyte)
    assert needed_bytes("INVALID_ARGUMENT: something else (12.0G)") is None
    assert np.isclose(needed_bytes("RESOURCE_EXHAUSTED: Used 512.00M of 1.0G hbm"), gibibyte / 2)


PROGRAM = """HloModule jit_step, is_scheduled=true

%fused_part (param_0: f32[100,10], param_1: f32[10]) -> f32[10] {
  %param_0 = f32[100,10]{1,0} parameter(0)
  %param_1 = f32[10]{0} parameter(1)
  %row = f32[1,10]{1,0} slice(%param_0), slice={[3:4], [0:10]}
  ROOT %sum = f32[10]{0} add(%row, %param_1)
}

%body (carried: (f32[10], s32[])) -> (f32[10], s32[]) {
  %carried = (f32[10]{0}, s32[]) parameter(0)
  %value = f32[10]{0} get-tuple-element(%carried), index=0
  %twice = f32[10]{0} add(%value, %value)
  ROOT %next = (f32[10]{0}, s32[]) tuple(%twice, %value)
}

ENTRY %main (big: f32[100,10], bias: f32[10]) -> f32[10] {
  %big = f32[100,10]{1,0:T(8,128)} parameter(0)
  %bias = f32[10]{0:T(128)} parameter(1)
  %started = ((f32[100,10]{1,0:T(8,128)}), f32[25,10]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%big), slice={[0:25], [0:10]}
  %quarter = f32[25,10]{1,0:T(8,128)S(1)} slice-done(%started)
  %near = f32[25,10]{1,0:T(8,128)S(1)} multiply(%quarter, %quarter)
  %copied = (f32[10]{0:T(128)}, f32[10]{0:T(128)S(1)}, u32[]{:S(2)}) copy-start(%near)
  %part = f32[10]{0:T(128)} fusion(%big, %bias), kind=kLoop, calls=%fused_part
  %looped = (f32[10]{0}, s32[]) while(%part), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %result = f32[10]{0} get-tuple-element(%looped), index=0
}
"""


def test_traffic_leaves_out_the_fast_memory_and_what_is_not_read():
    slice_of_big, copy_out = 4 * 250, 4 * 10  # each has HBM on one side
    fusion = 4 * 10 + 4 * 10 + 4 * 10  # one row, the bias, the result
    loop = 3 * (4 * 10 + 4 * 10)  # three iterations of one operand (used twice) and one result
    assert traffic_bytes(PROGRAM) == slice_of_big + copy_out + fusion + loop


def test_traffic_of_a_product_is_its_operands_and_its_result():
    compiled = jax.jit(lambda a, b: a @ b).lower(jnp.zeros((64, 32)), jnp.zeros((32, 16))).compile()
    assert traffic_bytes(compiled.as_text()) == 4 * (64 * 32 + 32 * 16 + 64 * 16)
