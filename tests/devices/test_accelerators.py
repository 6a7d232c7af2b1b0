"""The table of accelerators: which row a device is."""

import pytest

from progemu_jax.devices import accelerators


@pytest.mark.parametrize(
    ("kind", "terabytes", "teraflops"),
    [
        ("NVIDIA H200", 4.8, 989),
        ("NVIDIA H100 80GB HBM3", 3.35, 989),
        ("NVIDIA H100 PCIe", 2.0, 756),
        ("NVIDIA A100-SXM4-40GB", 1.555, 312),
        ("NVIDIA A100-SXM4-80GB", 2.039, 312),
        ("NVIDIA A100 80GB PCIe", 1.935, 312),
        ("TPU v5 lite", 0, 197),
    ],
)
def test_the_longest_name_counts(kind, terabytes, teraflops):
    found = accelerators.of_kind(kind)
    assert (found.bandwidth, found.flops) == pytest.approx((terabytes * 1e12, teraflops * 1e12))


def test_a_device_that_is_not_in_the_table_has_no_row():
    assert accelerators.of_kind("cpu") is None


def test_only_devices_with_all_figures_are_planned_for():
    assert all(one.memory and one.bandwidth and one.link and one.far for one in accelerators.PLANNED.values())
