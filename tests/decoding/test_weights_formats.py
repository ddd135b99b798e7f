"""Every weights format, and every kernel, multiplies as its facts say, and every family decodes in it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.contracts import WeightsFormat
from harness.decoding import blocks, packing
from harness.decoding.blocks import Linear, RMSNorm, multiply
from harness.decoding.engine import Engine
from harness.decoding.exit_modules.linear import LinearExit
from harness.decoding.packing import FormatChoice, fastest, pack, pack_all
from harness.errors import ModelError, UnknownNameError
from harness.registry import WEIGHTS_FORMATS
from strategies.full import Full

USABLE = [name for name in WEIGHTS_FORMATS.names() if WEIGHTS_FORMATS.load(name)().obstacle("cpu") is None]
INVARIANT = [name for name in USABLE if WEIGHTS_FORMATS.load(name).facts.invariant]
SHAPES = ((192, 128), (128, 64), (97, 64), (80, 40), (33, 24))
NEW = 12


def made(name: str) -> WeightsFormat:
    found: WeightsFormat = WEIGHTS_FORMATS.load(name)()
    return found


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def exact(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(rows.double(), weight.double(), None if bias is None else bias.double())


@pytest.mark.crossed
@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 33])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", USABLE)
def test_a_product_is_as_near_as_the_format_says(name: str, biased: bool, shape: tuple[int, int], count: int) -> None:
    weight, bias, rows = draw(*shape), draw(shape[0], seed=1) if biased else None, draw(count, shape[1], seed=2)
    packed = made(name).pack(weight, bias)
    assert packed.shape == shape
    product = packed(rows)
    assert (product.shape, product.dtype) == ((count, shape[0]), torch.float32)
    expected = exact(rows, weight, bias)
    error = (product.double() - expected).norm() / expected.norm()
    assert error <= max(made(name).facts.relative_error, 1e-6)
    for start in (0, 64, 20):  # the part that fills K,V
        if start < shape[0]:
            tail = packed.rows(start)
            assert tail.shape == (shape[0] - start, shape[1])
            torch.testing.assert_close(tail(rows), product[:, start:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", USABLE)
def test_activations_keep_their_dtype(name: str, dtype: torch.dtype) -> None:
    weight, bias, rows = draw(96, 64), draw(96, seed=1), draw(3, 64, seed=2).to(dtype)
    product, expected = made(name).pack(weight, bias)(rows), exact(rows, weight, bias)
    assert product.dtype is dtype
    assert (product.double() - expected).norm() / expected.norm() <= made(name).facts.relative_error + 0.01


@pytest.mark.crossed
@pytest.mark.parametrize("shape", [(960, 576), (576, 1536), (97, 64)])
@pytest.mark.parametrize("name", INVARIANT)
def test_the_bits_of_a_row_do_not_depend_on_the_rows_beside_it(name: str, shape: tuple[int, int]) -> None:
    packed, rows = made(name).pack(draw(*shape), None), draw(16, shape[1], seed=3)
    rows[5] *= 100  # an outlier, which would move the others if they shared a scale
    whole = packed(rows)
    for count in (1, 2, 3, 4, 5, 7, 8, 13):
        for start in range(0, 16 - count + 1, 3):
            assert torch.equal(packed(rows[start : start + count]), whole[start : start + count])


@pytest.mark.parametrize("name", USABLE)
def test_zeros_stay_zeros(name: str) -> None:
    weight = draw(64, 64)
    weight[3], weight[:, 32:] = 0, 0
    packed = made(name).pack(weight, None)
    assert packed(draw(2, 64))[:, 3].abs().max() == 0


@pytest.mark.parametrize("name", USABLE)
def test_the_bytes_are_those_that_are_held(name: str) -> None:
    packed = made(name).pack(draw(1024, 512), None)
    assert packed.nbytes == pytest.approx(1024 * 512 * made(name).facts.bits / 8, rel=0.01)


@pytest.mark.crossed
@pytest.mark.parametrize("count", [1, 3, 9])
@pytest.mark.parametrize("shape", [*SHAPES, (576, 1536)])
def test_an_outlier_costs_the_other_numbers_of_its_row_nothing(shape: tuple[int, int], count: int) -> None:
    """The default model's rows have numbers a hundred times as large as the rest."""
    weight, rows = draw(*shape), draw(count, shape[1], seed=2)
    weight[:, 5], rows[:, 5] = 0, 100
    expected = exact(rows, weight, None)
    error = (made("int8").pack(weight, None)(rows).double() - expected).norm() / expected.norm()
    assert error <= made("int8").facts.relative_error


def test_what_was_in_groups_of_sixteen_levels_stays_what_it_was() -> None:
    """As in a file in Q4_1, whose scales and least weights are half precision."""
    levels = torch.randint(0, 16, (48, 3, 32), generator=torch.Generator().manual_seed(0)).float()
    levels[..., 0], levels[..., 1] = 0, 15
    scale, least = draw(48, 3, 1, seed=1).abs().half().float(), draw(48, 3, 1, seed=2).half().float()
    weight = (levels * scale + least).view(48, 96)
    packed, units = made("int4").pack(weight, None), torch.eye(96)
    assert (packed(units).t() - weight).abs().max() <= 2e-3 * weight.abs().max()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", USABLE)
def test_what_is_not_finite_does_not_become_a_number(name: str, bad: float) -> None:
    rows = draw(2, 64)
    rows[1, 3] = bad
    product = made(name).pack(draw(32, 64), draw(32, seed=1))(rows)
    assert product[0].isfinite().all()
    assert not product[1].isfinite().any()


# ----------------------------------------------------------------------------------- whole models


@pytest.fixture(scope="session")
def packed_case(cases: Callable[[str], Any]) -> Callable[[str, str], Engine]:
    """Engines by form and format, each packed once."""
    found: dict[tuple[str, str], Engine] = {}

    def find(form: str, name: str) -> Engine:
        if (form, name) not in found:
            case = cases(form)
            backbone = pack(case.engine.backbone, name, "cpu")
            found[form, name] = Engine(backbone, replace(case.info, weights_format=name))
        return found[form, name]

    return find


def tokens(engine: Engine, prompts: list[list[int]], kv: str = "propagate", exits: Any = None) -> list[list[int]]:
    rows = engine.decode(prompts, exits or Full(), kv=kv, max_new_tokens=[NEW] * len(prompts))
    assert all(row.failure is None for row in rows)
    return [row.token_ids for row in rows]


def widened(matrix: Any) -> Linear:
    """What a packed matrix holds, as float32."""
    bias = matrix(torch.zeros(1, matrix.shape[1]))
    return Linear((matrix(torch.eye(matrix.shape[1])) - bias).t().contiguous(), bias[0])


@pytest.mark.crossed
@pytest.mark.parametrize("name", USABLE)
def test_every_family_decodes_as_the_same_weights_widened(
    case: Any, name: str, packed_case: Callable[[str, str], Engine], prompts: list[list[int]]
) -> None:
    """The packed model against float32 with the weights that the format keeps: only activations are rounded."""
    engine = packed_case(case.form, name)
    backbone = engine.backbone
    reference = Engine(
        replace(
            backbone,
            blocks=[block.packed(widened) for block in backbone.blocks],
            embed=replace(backbone.embed, words=backbone.embed.words.float(), dtype=None),
            lm_head=widened(backbone.lm_head),
            project_out=None if backbone.project_out is None else widened(backbone.project_out),
        ),
        case.info,
    )
    states = [one.read(prompts[1], [one.info.num_layers])[0] for one in (engine, reference)]
    error = (states[0] - states[1]).norm() / states[1].norm()
    assert error < (0.25 if made(name).facts.accuracy == "lossy" else 1e-5)


def test_nothing_of_the_float32_matrices_is_kept(make_case: Callable[..., Any]) -> None:
    import weakref

    case = make_case("llama")
    held = [weakref.ref(matrix.weight) for matrix in case.engine.backbone.linear_maps()]
    backbone = pack(case.engine.backbone, "int8", "cpu")
    rotary, del_embedding = backbone.rotary, weakref.ref(case.engine.backbone.embed.words)
    del case
    gc.collect()
    assert backbone.lm_head.shape[0]
    assert rotary is not None
    assert not any(reference() is not None for reference in held)
    assert del_embedding() is None


def test_formats_packed_together_share_what_they_store_alike(make_case: Callable[..., Any]) -> None:
    """int4 keeps its head and the maps of exits in 8 bits, as int8 does; all three keep word embeddings in 16."""
    case = make_case("llama")
    shortcuts = {3: LinearExit({"": Linear(torch.eye(case.info.hidden_size))})}
    whole = replace(case.engine.backbone, shortcuts=shortcuts)
    packed = pack_all(whole, ["fp16", "int8", "int4"], "cpu")
    assert list(packed) == ["fp16", "int8", "int4"]
    fp16, int8, int4 = packed.values()
    assert int4.lm_head is int8.lm_head
    assert int4.shortcuts[3].maps[""] is int8.shortcuts[3].maps[""]
    assert fp16.lm_head is not int8.lm_head
    assert fp16.embed.words is int8.embed.words is int4.embed.words
    assert int4.blocks[0].qkv is not int8.blocks[0].qkv
    alone = Engine(pack(whole, "int4", "cpu"), case.info)
    assert tokens(alone, [[1, 2, 3]]) == tokens(Engine(int4, case.info), [[1, 2, 3]])


# ------------------------------------------------------------------------------------- the choice


def test_a_format_that_this_machine_lacks_names_those_it_has(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WEIGHTS_FORMATS.load("fp16"), "obstacle", lambda self, device: "nothing compiles here")
    with pytest.raises(ModelError) as refused:
        pack(llama.engine.backbone, "fp16", "cpu")
    assert str(refused.value) == (
        "--weights-format fp16 cannot be used here: nothing compiles here. "
        "Use one of bfloat16, float32, int4, int8, w4a8, w8a8."
    )
    with pytest.raises(UnknownNameError, match="fp61"):
        pack(llama.engine.backbone, "fp61", "cpu")
    assert made("int4").obstacle("cuda")


def grown(llama: Any, largest: float) -> Any:
    backbone = llama.engine.backbone
    weight = backbone.blocks[2].output.weight.clone()
    weight[3, 4] = largest
    blocks = list(backbone.blocks)
    blocks[2] = replace(blocks[2], output=Linear(weight))
    return replace(backbone, blocks=blocks)


def test_weights_beyond_a_formats_range_are_refused(llama: Any) -> None:
    pack(grown(llama, -65504.0), "fp16", "cpu")
    with pytest.raises(ModelError, match=r"fp16 holds numbers up to 65504, and the weights reach 70000\. Use"):
        pack(grown(llama, -70000.0), "fp16", "cpu")


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``timed(fp16=.5)``: what a format takes of float32's time, as the machine's clock would tell."""

    def tell(**shares: float) -> None:
        monkeypatch.setattr(packing, "ENOUGH", 0)
        monkeypatch.setattr(
            packing, "_time_all", lambda tried, matrices: {name: (shares.get(name, 1.0),) * 3 for name in tried}
        )

    return tell


def test_the_fastest_format_that_keeps_tokens_is_taken(llama: Any, timed: Callable[..., None]) -> None:
    timed(fp16=0.5, int8=0.1, int4=0.1, bfloat16=0.1)
    choice = fastest(llama.engine.backbone, "cpu")
    assert choice == FormatChoice("fp16", {"float32": (1.0,) * 3, "fp16": (0.5,) * 3}, {})  # lossy ones are not tried
    timed(fp16=0.95)  # not worth another rounding
    assert fastest(llama.engine.backbone, "cpu").name == "float32"


def test_a_format_is_left_out_with_the_reason(
    llama: Any, timed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(fp16=0.5)
    choice = fastest(grown(llama, 1e5), "cpu")
    assert choice.name == "float32"
    assert "the weights reach 100000" in choice.left_out["fp16"]
    monkeypatch.setattr(WEIGHTS_FORMATS.load("fp16"), "obstacle", lambda self, device: "nothing compiles here")
    assert "nothing compiles" in fastest(llama.engine.backbone, "cpu").left_out["fp16"]


def test_what_is_too_small_to_tell_keeps_float32(llama: Any) -> None:
    assert fastest(llama.engine.backbone, "cpu") == FormatChoice(
        "float32", {}, {"fp16": "the model is too small to tell"}
    )


def test_activations_of_another_dtype_have_a_format_of_their_own(llama: Any) -> None:
    backbone = replace(llama.engine.backbone, like=torch.empty(0, dtype=torch.bfloat16))
    assert fastest(backbone, "cpu") == FormatChoice("bfloat16")


@pytest.mark.parametrize("name", ["fp16", "bfloat16"])
def test_tied_word_embeddings_are_the_head_s_own_rows(name: str, make_case: Callable[..., Any]) -> None:
    whole = make_case("llama", tie_word_embeddings=True, hidden_size=72).engine.backbone  # padded to 96
    backbone = pack(whole, name, "cpu")
    head = getattr(backbone.lm_head, "data", None)
    head = backbone.lm_head.weight if head is None else head  # type: ignore[attr-defined]
    assert backbone.embed.words.data_ptr() == head.data_ptr()
    every, places = torch.arange(len(whole.embed.words)), torch.zeros(len(whole.embed.words), dtype=torch.int64)
    assert torch.equal(backbone.embed(every, places), whole.embed.words.to(backbone.embed.words.dtype).float())
    apart = make_case("llama").engine.backbone
    assert pack(apart, name, "cpu").embed.words.shape == apart.embed.words.shape


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_chosen", {})


@pytest.mark.crossed
@pytest.mark.parametrize("count", range(1, 11))
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("typed", [(dtype, kernel) for dtype, kernels in blocks.KERNELS.items() for kernel in kernels])
def test_a_product_is_that_of_its_rows(
    count: int, with_bias: bool, typed: tuple[torch.dtype, blocks.Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype, kernel = typed
    threads, shape = torch.get_num_threads(), torch.Size((80, 48))
    monkeypatch.setattr(blocks, "_chosen", {(dtype, shape, rows, threads): kernel for rows in blocks.COUNTS})
    draw = torch.Generator().manual_seed(count)
    rows, weight = (torch.randn(size, generator=draw).to(dtype) for size in ((count, 48), shape))
    bias = torch.randn(80, generator=draw).to(dtype) if with_bias else None
    product = multiply(rows, weight, bias)
    assert (product.shape, product.dtype) == ((count, 80), dtype)
    assert product.is_contiguous()
    exact = F.linear(rows.double(), weight.double(), None if bias is None else bias.double())
    near: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 5e-2}
    torch.testing.assert_close(product.double(), exact, **near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("faster", [0, 1])
def test_the_faster_kernel_multiplies(dtype: torch.dtype, faster: int, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def kernel(number: int) -> blocks.Kernel:
        def run(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            if number != faster:
                time.sleep(0.005)
            used.append(number)
            return F.linear(rows, weight, bias)

        return run

    monkeypatch.setattr(blocks, "KERNELS", {torch.float32: (kernel(0), kernel(1)), torch.bfloat16: (F.linear,) * 2})
    weight, small = torch.ones(512, 512, dtype=dtype), torch.ones(8, 8, dtype=dtype)
    blocks.choose([weight, small])
    tried = set(used)
    used.clear()
    for count in (1, 2, 3, 4, 5, 8, 9):
        multiply(torch.ones(count, 512, dtype=dtype), weight, None)
        multiply(torch.ones(count, 8, dtype=dtype), small, None)  # too small to be measured
    assert (tried, used) == (({0, 1}, [faster] * 6) if dtype is torch.float32 else (set(), []))
    blocks.choose([weight])  # known
    assert len(used) == (6 if dtype is torch.float32 else 0)


def test_a_run_that_goes_on_takes_the_kernels_it_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that are as fast either may win; nothing else is taken from a record, whatever it says."""
    weight = torch.ones(512, 512)
    blocks.choose([weight])
    first = blocks.choices()
    names = [kernel.__name__ for kernel in blocks.KERNELS[torch.float32]]
    assert len(first) == len(blocks.COUNTS)
    assert set(first.values()) <= set(names)
    other = {product: names[1 - names.index(kernel)] for product, kernel in first.items()}
    blocks.choose_again({**other, "torch.float32 (1, 2) × 1": "linear"})
    assert blocks.choices() == other
    blocks.choose_again(dict.fromkeys(other, "system"))
    assert blocks.choices() == other


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_a_norm_of_few_rows_is_that_of_many(count: int) -> None:
    rows, gain = torch.randn(count, 64), torch.randn(64)
    norm = RMSNorm(gain, 1e-5)
    torch.testing.assert_close(norm(rows), gain * norm.standardise(rows))
