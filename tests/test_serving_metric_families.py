"""What is declared: bounded labels, buckets that fit, and the values that the code really uses."""

import grpc
import pytest

from serving.health import Phase
from serving.metric_families import (
    CODES,
    FAMILIES,
    GRPC_CODES,
    METHODS,
    REASONS,
    Family,
)
from simple_diffusion.v1 import diffusion_pb2 as pb


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_follow_the_rules_of_prometheus(family: Family) -> None:
    assert family.name.startswith(("diffusion_", "grpc_server_"))
    assert family.name.endswith("_total") == (family.kind == "counter")
    assert not {"seed", "request_id", "peer"} & set(family.labels)
    assert family.text.endswith(".")
    assert bool(family.buckets) == (family.kind == "histogram")


def test_no_name_is_declared_twice() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.buckets], ids=lambda family: family.name
)
def test_buckets_begin_at_a_millisecond_or_a_row_and_never_jump(family: Family) -> None:
    first, seconds = family.buckets[0], family.name.endswith("_seconds")
    assert first == (0.001 if seconds else 1)
    pairs = zip(family.buckets, family.buckets[1:], strict=False)
    assert all(1 < upper / lower <= 3 for lower, upper in pairs)


def test_methods_are_those_of_the_service_over_grpc_and_over_http() -> None:
    methods = pb.DESCRIPTOR.services_by_name["DiffusionService"].methods
    names = {method.name for method in methods}
    assert set(METHODS) == names | {f"Http{name}" for name in names}


def test_codes_are_grpc_codes_and_never_unknown() -> None:
    assert set(CODES) < set(grpc.StatusCode.__members__)
    assert "UNKNOWN" not in CODES


def test_grpc_codes_stand_in_the_order_of_their_numbers() -> None:
    for code in grpc.StatusCode:
        plain = code.name.replace("_", "").replace("CANCELLED", "CANCELED")
        assert GRPC_CODES[code.value[0]].upper() == plain


def test_every_phase_that_refuses_is_a_reason() -> None:
    refusing = set(Phase) - {Phase.SERVING, Phase.LAME_DUCK}
    assert {phase.value for phase in refusing} <= set(REASONS)
