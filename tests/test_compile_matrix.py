"""A small part of the compile matrix, and the machinery of the whole (`make compile-matrix`)."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compile_matrix import matrix
from compile_matrix.cases import COLUMNS, Case, cases, first_of_each, pairwise
from compile_matrix.matrix import Outcome, Task, check, cost_key, run_case, worse_than_recorded
from triton import knobs

from tinynet_engines.offline.targets import TARGETS, find_target
from tinynet_kernels import linear, tiles
from tinynet_kernels.activation_spec import Activation

TARGETS_HERE = ("sm_80", "sm_90", "gfx942")


@pytest.fixture(autouse=True)
def compiled() -> None:
    if knobs.runtime.interpret:
        pytest.skip("nothing is compiled in interpreter mode")


def first_cases(target: str, column: str) -> list[int]:
    """The position of the first case of each launcher of a column."""
    named = enumerate(cases(find_target(target))[column])
    return [index for index, _ in first_of_each(named, lambda entry: entry[1].name.split()[0])]


@pytest.mark.parametrize("target", TARGETS_HERE)
def test_the_first_case_of_each_launcher(target: str):
    """In a worker process, because a compiler that aborts must not end the suite."""
    recorded = matrix.load_costs()
    work = [Task(target, column, index, index + 1) for column in COLUMNS for index in first_cases(target, column)]
    outcomes = [outcome for _, done in matrix.run(work, workers=1) for outcome in done]
    assert len(outcomes) == len(work) >= 2 * len(COLUMNS)
    failures = [f"{outcome.name}: {failure}" for outcome in outcomes for failure in outcome.failures]
    failures += [sentence for each in outcomes for sentence in worse_than_recorded(target, each.costs, recorded)]
    assert not failures
    assert all(outcome.launches > 0 for outcome in outcomes)
    figures = {key for outcome in outcomes for key in outcome.costs}
    assert not recorded or figures <= set(recorded[target]), "record them: make compile-matrix ARGS=--record"


@pytest.mark.parametrize("target", TARGETS)
def test_names_of_cases_are_unique(target: str):
    for column, listed in cases(find_target(target)).items():
        assert len({case.name for case in listed}) == len(listed), column


@pytest.mark.parametrize("target", TARGETS)
def test_linear_cases_reach_every_tile_of_the_rule(target: str):
    chip = find_target(target)
    rule = tiles.Target(chip.backend, chip.architecture, chip.multiprocessors, chip.shared_per_block)
    sizes = [int(2 ** (power / 2)) for power in range(0, 36, 3)]
    for dtype, text in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        wanted = {tiles.gemm_tile(*size, dtype, rule) for size in itertools.product(sizes, repeat=3)}
        calls = [case.run for case in cases(chip)["linear"] if case.name.startswith(f"forward {text} (")]
        shapes = [(*call.args[0].shape, call.args[1].shape[0]) for call in calls]  # type: ignore[attr-defined]
        assert wanted <= {tiles.gemm_tile(M, N, K, dtype, rule) for M, K, N in shapes}


def test_pairwise_holds_every_pair_in_few_rows():
    options = {"a": range(5), "b": "xyz", "c": (True, False), "d": (None, 1)}
    rows = pairwise({name: tuple(values) for name, values in options.items()})
    for (one, ones), (two, twos) in itertools.combinations(options.items(), 2):
        assert {(row[one], row[two]) for row in rows} == set(itertools.product(ones, twos))
    assert len(rows) < 25


def product_case(dtype: torch.dtype = torch.bfloat16, depth: int = 512) -> Case:
    x, weight = (torch.empty(512, depth, dtype=dtype, device="meta") for _ in range(2))
    return Case("product", lambda: linear.linear_forward(x, weight, None, Activation("identity"), save=False))


def test_a_case_that_raises_fails_alone():
    def broken() -> None:
        raise ValueError("first line\nlast line")

    assert run_case("sm_90", Case("broken", broken)) == Outcome("broken", 0, ["ValueError: last line"], {})


def test_a_case_without_a_launch_fails():
    assert run_case("sm_90", Case("empty", lambda: None)).failures == ["launched no kernel"]


def test_unaligned_rows_fail_only_where_the_case_claims_alignment():
    case = product_case(depth=509)
    assert any("16 bits or fewer" in failure for failure in run_case("sm_90", case).failures)
    assert not run_case("sm_90", case._replace(aligned=False)).failures


def test_a_spill_fails_unless_it_is_listed_and_no_larger(monkeypatch: pytest.MonkeyPatch):
    import tinynet

    with tinynet.inspect("sm_90") as report:
        product_case().run()
    (launch,) = report.launches
    assert check(launch, aligned=True) == []
    assert cost_key(launch).startswith("linear_forward_kernel bf16 block_k=")
    sound = launch.kernel.code

    def failures(**facts: int) -> list[str]:
        monkeypatch.setitem(launch.kernel.__dict__, "code", replace(sound, **facts))
        return check(launch, aligned=True)

    assert "spills 16 bytes per thread, 0 accesses in loops" in failures(spill_bytes=16)[0]
    monkeypatch.setitem(matrix.SPILLS_ALLOWED, ("linear_forward_kernel", "sm_90"), matrix.PARKED)
    assert failures(spill_bytes=16) == []
    assert "2 accesses in loops" in failures(spill_bytes=16, loop_spills=2)[0]
    assert "spills 20 bytes" in failures(spill_bytes=20)[0]


def test_a_figure_above_its_record_is_named(tmp_path: Path):
    path = tmp_path / "costs.json"
    matrix.save_costs({"sm_90": {"b": 20.004, "a": 3.0}}, path)
    recorded = matrix.load_costs(path)
    assert recorded == {"sm_90": {"a": 3.0, "b": 20.0}}
    assert worse_than_recorded("sm_90", {"b": 20.3, "new": 99.0}, recorded) == []
    (sentence,) = worse_than_recorded("sm_90", {"b": 21.0}, recorded)
    assert sentence == "b: 21.0 main-loop instructions per matrix instruction, recorded 20.0"
    assert worse_than_recorded("sm_80", {"b": 21.0}, recorded) == []


def test_figures_of_another_triton_are_not_compared(tmp_path: Path):
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"triton": "1.0", "costs": {"sm_90": {"b": 20.0}}}))
    assert matrix.load_costs(path) == {}


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        matrix.main(["--column", "no_such_column"])
    assert "--column: got no_such_column; expected some of activation" in capsys.readouterr().err
