"""Faults planted in copies of csrc/cuda's kernels, by text: each must turn the operator's own tests red.

A mutant names a text that stands once in its file. Where the text is gone the kernel has changed, and the fault must be
planted anew: that is an error, not a skip.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compiling import BUILD, CUDA, Target, operators

ORDER = r"depends on the order of threads"
UNWRITTEN = r"nan instead of"
WRONG = r"relative error .* allowed"
SPREAD = r"Tensor-likes are not"
ASTRAY = r"AddressSanitizer|runtime error"  # an index that nobody has written
BEYOND = r"AddressSanitizer: (heap-buffer-overflow|use-after-poison)"


POOL = "tests/ops/test_pyramid_pool.py::test_pyramid_pool"
POOL_ADD = "tests/ops/test_pyramid_pool_through.py::test_backward_add"
CONCAT = "tests/ops/test_pyramid_concat.py::test_pyramid_concat"
CONCAT_SIZES = "tests/ops/test_pyramid_concat.py::test_sizes"
CONV = "tests/ops/test_pyramid_conv.py::test_pyramid_conv"
CONV_SIZES = "tests/ops/test_pyramid_conv.py::test_many_channels_and_columns"
CONV_SHAPES = "tests/ops/test_pyramid_conv.py::test_any_shape_and_options"
CONV_RELU = "tests/ops/test_pyramid_conv_norm_relu.py::test_pyramid_conv_norm_relu"
SPECIAL = "tests/ops/test_special_values.py::test_pyramid_conv"
LEVELS = "tests/ops/test_pyramid_levels.py::test_pyramid_levels"
LOSS = "tests/ops/test_upsample_cross_entropy.py::test_upsample_cross_entropy"
ARGMAX = "tests/ops/test_upsample_argmax.py::test_upsample_argmax"
ADD = "tests/ops/test_upsample_softmax_add.py"
UPSAMPLE_ADD = "tests/ops/test_upsample_add.py::test_"
CORRECT = "tests/ops/test_dual_cross_entropy.py::test_correct_pixels"


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str  # of csrc/cuda
    before: str
    after: str
    shows: str  # a regular expression that the red run prints
    tests: str
    variant: str = "plain"
    unit: str = ""  # the .cu file that includes `file`, if that is a header

    def plant(self) -> Target:
        """Writes copies of the kernels, one of them changed; returns the library of operators with the changed unit."""
        found = (CUDA / self.file).read_text().count(self.before)
        if found != 1:
            raise LookupError(f"mutant {self.name}: its text stands {found} times in {self.file}:\n{self.before}")
        folder = BUILD / "mutants" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        for source in (self.file, *(path.name for path in CUDA.glob("*.cuh"))):
            text = (CUDA / source).read_text()
            _write(folder / source, text.replace(self.before, self.after) if source == self.file else text)
        unit = folder / (self.unit or self.file)
        if self.unit:
            _write(unit, (CUDA / self.unit).read_text())
        return operators(self.variant, self.name, unit)


def _write(path: Path, text: str) -> None:
    """Leaves a file of that text alone, so that what is made of it stays up to date."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def nchw(name: str, before: str, after: str, shows: str, variant: str = "plain") -> Mutant:
    """Of the pooling kernels for NCHW."""
    return Mutant(f"pyramid_pool_{name}", "pyramid_pool_nchw.cu", before, after, shows, POOL, variant)


def nhwc(name: str, before: str, after: str, shows: str, variant: str = "plain") -> Mutant:
    """Of those for channels_last."""
    return Mutant(f"pyramid_pool_nhwc_{name}", "pyramid_pool_nhwc.cu", before, after, shows, POOL, variant)


def packs(name: str, unit: str, before: str, after: str, shows: str, tests: str = POOL) -> Mutant:
    """Of what both share."""
    return Mutant(
        f"pyramid_pool_{name}", "pyramid_pool.cuh", before, after, shows, tests, unit=f"pyramid_pool_{unit}.cu"
    )


def concat(
    kernel: str, name: str, before: str, after: str, shows: str, variant: str = "plain", tests: str = CONCAT
) -> Mutant:
    unit = f"pyramid_concat_{kernel}"
    return Mutant(f"{unit}_{name}", f"{unit}.cu", before, after, shows, tests, variant)


def product(name: str, before: str, after: str, shows: str, variant: str = "plain", tests: str = CONV) -> Mutant:
    """Of the grouped products."""
    file, unit = "pyramid_product.cuh", "pyramid_product.cu"
    return Mutant(f"pyramid_product_{name}", file, before, after, shows, tests, variant, unit)


def conv(
    kernel: str, name: str, before: str, after: str, shows: str, variant: str = "plain", tests: str = CONV
) -> Mutant:
    unit = f"pyramid_conv_{kernel}"
    return Mutant(f"{unit}_{name}", f"{unit}.cu", before, after, shows, tests, variant)


def run_of(kernel: str, name: str, before: str, after: str, shows: str, variant: str = "plain") -> Mutant:
    """Of what adding to the image and gathering from it share."""
    file, unit = "pyramid_conv_run.cuh", f"pyramid_conv_{kernel}.cu"
    return Mutant(f"pyramid_conv_run_{name}", file, before, after, shows, CONV, variant, unit)


def levels(name: str, before: str, after: str, shows: str, tests: str = LEVELS) -> Mutant:
    return Mutant(f"pyramid_levels_{name}", "pyramid_levels.cu", before, after, shows, tests)


def loss(name: str, before: str, after: str, shows: str, variant: str = "plain") -> Mutant:
    """Of the cross-entropy kernel."""
    file, unit = "cross_entropy_tile.cuh", "cross_entropy.cu"
    return Mutant(f"cross_entropy_{name}", file, before, after, shows, LOSS, variant, unit)


def finish(name: str, before: str, after: str, shows: str, variant: str = "plain") -> Mutant:
    """Of the kernels that follow it."""
    return Mutant(f"cross_entropy_finish_{name}", "cross_entropy_finish.cu", before, after, shows, LOSS, variant)


def argmax(name: str, before: str, after: str, shows: str, tests: str = ARGMAX, variant: str = "plain") -> Mutant:
    return Mutant(f"upsample_argmax_{name}", "upsample_argmax.cu", before, after, shows, tests, variant)


def upsample_add(
    name: str, before: str, after: str, shows: str, test: str = "upsample_add", variant: str = "plain"
) -> Mutant:
    file = "upsample_add_bwd.cu" if name.startswith("bwd") else "upsample_add.cu"
    return Mutant(f"upsample_add_{name}", file, before, after, shows, UPSAMPLE_ADD + test, variant)


def softmax_add(name: str, before: str, after: str, shows: str, test: str, variant: str = "plain") -> Mutant:
    file = "upsample_softmax_add.cu"
    return Mutant(f"upsample_softmax_add_{name}", file, before, after, shows, f"{ADD}::{test}", variant)


MUTANTS = [
    nchw("lines_barrier", "sums);\n    }\n    __syncthreads();\n", "sums);\n    }\n", ORDER),
    nchw("atoms_barrier", "] += sum;\n    }\n    __syncthreads();\n", "] += sum;\n    }\n", ORDER),
    nchw("shares_barrier", "(c);\n    }\n  }\n  __syncthreads();\n", "(c);\n    }\n  }\n", ORDER),
    nchw("gradient_barrier", "] = sum;\n  }\n  __syncthreads();\n", "] = sum;\n  }\n", ORDER),
    nchw(
        "early_exit",
        "  const T* input = x + plane * t.height * t.width;\n",
        "  const T* input = x + plane * t.height * t.width;\n  if (threadIdx.x >= unsigned(t.width)) return;\n",
        r"barrier divergence: it (exits|waits)",
    ),
    nchw(
        "unwritten_bin",
        "index < t.packed_bins; index += kForwardThreads) {\n    const Bin bin",
        "index < t.packed_bins - 1; index += kForwardThreads) {\n    const Bin bin",
        UNWRITTEN,
    ),
    nchw(
        "unwritten_gradient",
        "(t.height * packs - first + kThreads - 1) / kThreads",
        "(t.height * packs - first + kThreads - 2) / kThreads",
        UNWRITTEN,
    ),
    nchw(
        "row_too_many",
        "rows = t.row_edge[r + 1] - first;",
        "rows = t.row_edge[r + 1] + 1 - first;",
        BEYOND,
        "checked",
    ),
    nchw("shared_too_small", "line_bytes * tile + atom_bytes, stream", "line_bytes * tile, stream", BEYOND, "checked"),
    nchw(
        "shared_too_large",
        "line_bytes * tile + atom_bytes, stream",
        "line_bytes * tile + (48 << 10), stream",
        r"bytes of dynamic shared memory, but 49152 are allowed",
    ),
    nchw("shares_of_another", "sum += shares[index];", "sum += shares[0];", WRONG),
    nchw("row_of_another", "while (h >= t.row_edge[r + 1]) ++r;", "while (h > t.row_edge[r + 1]) ++r;", WRONG),
    nhwc("unwritten_gradient", "t.channels / VEC, count, [", "t.channels / VEC, count - 1, [", UNWRITTEN),
    nhwc("bins_barrier", "bin));\n    }\n  }\n  __syncthreads();\n", "bin));\n    }\n  }\n", ORDER),
    nhwc("staged_barrier", "[lane] = sum; });\n    __syncthreads();\n", "[lane] = sum; });\n", ORDER),
    packs("batch_too_small", "nhwc", "sums[j] += load(pack.v[j]);", "sums[j] += load(pack.v[0]);", WRONG, POOL),
    packs("written_over", "nchw", "if constexpr (ADD) sums[j] += load(packs[i].v[j]);", "", WRONG, POOL_ADD),
    packs("last_bin", "nhwc", "r >= t.row_last[row]", "r > t.row_last[row]", WRONG),
    nhwc(
        "misaligned",
        "const bool aligned = t.channels % kVec == 0 && is_aligned(x, 16);",
        "const bool aligned = true;",
        r"misaligned address",
        "checked",
    ),
    concat(
        "nchw", "unwritten_channel", "shape.level_channels - begin)", "shape.level_channels - begin - 1)", UNWRITTEN
    ),
    concat("nchw", "unwritten_copy", "< packs) to[", "< packs - 1) to[", UNWRITTEN),
    concat("nchw", "corner_too_far", "level.columns.next(j) - j", "1", BEYOND, "checked"),
    concat(
        "nchw_bwd",
        "lines_barrier",
        "columns, lines);\n    __syncthreads();\n",
        "columns, lines);\n",
        ORDER,
    ),
    concat(
        "nchw_bwd",
        "sums_barrier",
        "lines, totals);\n    __syncthreads();",
        "lines, totals);",
        ORDER,
        tests=CONCAT_SIZES,
    ),
    concat(
        "nchw_bwd",
        "unwritten_node",
        "i < count; i += kThreads) output",
        "i < count - 1; i += kThreads) output",
        UNWRITTEN,
    ),
    concat("nchw_bwd", "shared_too_small", "plan.parts * plan.tile + k)", "plan.parts * plan.tile)", BEYOND, "checked"),
    concat("nhwc", "nodes_of_another_column", "if (j != column) {", "if (column < 0) {", WRONG),
    concat("nhwc", "unwritten_pixel", "min(kColumns, shape.width - begin)", "shape.width - begin - 1", UNWRITTEN),
    concat("nhwc_bwd", "unwritten_side", "side < 4; ++side", "side < 3; ++side", UNWRITTEN),
    concat("nhwc_bwd", "sides_exchanged", "row_parts ? 2 : 0", "row_parts ? 0 : 2", WRONG),
    concat("nhwc_bwd", "row_too_many", "h < rows.end; ++h", "h <= rows.end; ++h", BEYOND, "checked"),
    product(
        "staged_barrier",
        "first + kDepth, shared.a, shared.b);\n    __syncthreads();",
        "first + kDepth, shared.a, shared.b);",
        ORDER,
    ),
    product("read_barrier", "shared.side.b);\n    __syncthreads();\n", "shared.side.b);\n", ORDER),
    product("result_barrier", "tile.store(shared.result);\n  __syncthreads();", "tile.store(shared.result);", ORDER),
    product(
        "offsets_barrier",
        "place_chunk(p, 0, shared.a, shared.b);\n  __syncthreads();",
        "place_chunk(p, 0, shared.a, shared.b);",
        ASTRAY,
        "checked",
    ),
    product("last_chunk", "first < p.k.size; first", "first < p.k.size - kDepth; first", WRONG, tests=CONV_SIZES),
    product("row_too_many", "return i < axis.size ?", "return i <= axis.size ?", BEYOND, "checked"),
    product("next_product", "block >= products.of[which + 1]", "block > products.of[which + 1]", WRONG),
    conv("add", "staged_barrier", "return !__syncthreads_or(special != 0);", "return special == 0;", ORDER),
    conv("add", "special", "!__syncthreads_or(special != 0)", "__syncthreads_or(1) != 0", SPREAD, tests=SPECIAL),
    conv("gather", "special", "!__syncthreads_or(special != 0) ||", "!__syncthreads_or(0) ||", SPREAD, tests=SPECIAL),
    conv(
        "add",
        "taps_barrier",
        "find_row_taps(t, h, taps);\n    __syncwarp();",
        "find_row_taps(t, h, taps);",
        ASTRAY,
        "checked",
    ),
    conv("add", "terms_barrier", "    __syncwarp();\n\n    if (!finite)", "\n    if (!finite)", ORDER),
    conv(
        "add",
        "wrong_tap",
        "tap[i].bottom_weight * q_of(bottom[i] + at)",
        "tap[i].bottom_weight * q_of(top[i] + at)",
        WRONG,
    ),
    conv("add", "term_missing", "term < t.terms; ++term", "term < t.terms - 1; ++term", WRONG),
    conv(
        "add",
        "channel_too_many",
        "channel < t.out_channels ? column[p * t.out_channels] : Real(0)",
        "column[p * t.out_channels]",
        BEYOND,
        "checked",
    ),
    conv("add", "no_epilogue", "if (norm.mean != nullptr) value", "if (false) value", WRONG, tests=CONV_RELU),
    conv(
        "gather",
        "sums_barrier",
        "add_rows(t, shared, rows, global_sum);\n    }\n    __syncthreads();",
        "add_rows(t, shared, rows, global_sum);\n    }",
        ORDER,
        tests=CONV_SIZES,
    ),
    conv(
        "gather",
        "rows_barrier",
        "(t, shared.u, staged, terms);\n      }\n    }\n    __syncthreads();",
        "(t, shared.u, staged, terms);\n      }\n    }\n",
        ORDER,
    ),
    conv(
        "gather",
        "staged_barrier",
        "shared.rows + warp * t.row_terms);\n      __syncwarp();",
        "shared.rows + warp * t.row_terms);",
        ORDER,
    ),
    conv("gather", "replaced_barrier", "__syncwarp();  // all have read what G may take the place of", "", ORDER),
    conv("gather", "missing_run", "part < count; ++part", "part < count - 1; ++part", WRONG),
    conv(
        "gather",
        "row_missing",
        "const int rows = min(grid.warps, run.last_row - first);",
        "const int rows = min(grid.warps, run.last_row - first - 1);",
        WRONG,
    ),
    conv("gather", "element_too_many", "if (i >= size) return;", "if (i > size) return;", BEYOND, "checked"),
    conv(
        "gather",
        "unwritten_sums",
        "    if (grid.staged) global_sum(p) = staged_sum(p);\n    special += Real(0) * global_sum(p);\n",
        "",
        UNWRITTEN,
    ),
    run_of("add", "column_too_many", "i < lines && j < line ?", "i <= lines && j <= line ?", BEYOND, "checked"),
    run_of(
        "gather", "padding", "w < t.width ? w + dx - t.kernel_width / 2 : -1", "w + dx - t.kernel_width / 2 + 1", WRONG
    ),
    levels("wrong_bin", "first_line + index % k};", "first_line + index / k};", WRONG),
    levels("atom_missing", "i < count; i += step", "i < count - 1; i += step", WRONG),
    levels("parts_barrier", "      }\n      __syncthreads();\n", "      }\n", ORDER),
    loss("staged_barrier", "    __syncwarp();\n    visit(first, count);", "    visit(first, count);", ORDER),
    loss("corners_barrier", "== nullptr;\n  __syncwarp();", "== nullptr;", ORDER),
    loss(
        "unwritten_node", "min(kOwnedNodes, nodes - first_node)", "min(kOwnedNodes, nodes - first_node - 1)", UNWRITTEN
    ),
    loss("class_too_many", "c < count ? load_as<Real>(from) : Real(0)", "load_as<Real>(from)", BEYOND, "checked"),
    finish("barrier", "half /= 2) {\n    __syncthreads();", "half /= 2) {", ORDER),
    finish("edge_too_many", "if (i >= values) return;", "if (i > values) return;", BEYOND, "checked"),
    argmax("column_too_many", "  if (x >= p.columns.out) rows.count = 0;\n", "", BEYOND, variant="checked"),
    argmax(
        "exited_lanes",
        "if (p.correct == nullptr) return;",
        "if (p.correct == nullptr || rows.count == 0) return;",
        r"which is not active",
        CORRECT,
    ),
    upsample_add("fwd_taps_barrier", "first, taps);\n  __syncthreads();", "first, taps);", ASTRAY, variant="checked"),
    upsample_add("fwd_wrong_row", "bins + tap.second * stride", "bins + tap.first * stride", WRONG),
    upsample_add(
        "fwd_row_too_many", "if (r >= rows) break;\n      const", "const", BEYOND, "any_shape_and_options", "checked"
    ),
    upsample_add("bwd_cell_in_front", "int i = begin - 1; i < end", "int i = begin; i < end", WRONG),
    upsample_add("bwd_lines_barrier", "shared.lines);\n    __syncthreads();", "shared.lines);", ORDER),
    upsample_add(
        "bwd_tile_barrier", "    __syncthreads();\n  } while", "  } while", ORDER, "a_line_longer_than_a_task_holds"
    ),
    softmax_add("column_too_many", "  if (x >= p.width) return;\n", "", BEYOND, "test_taps", "checked"),
    softmax_add(
        "maximum", "if (!(logit <= pixel.most)) pixel.most = logit;", "pixel.most = 0;", SPREAD, "test_logits_far_apart"
    ),
    softmax_add(
        "weight_of_nothing",
        "if (row[i].weight == 0 || column[j].weight == 0) continue;\n        sum",
        "sum",
        SPREAD,
        "test_what_is_not_finite_stays_at_its_pixels",
    ),
    softmax_add("flip", "flip ? axis.out - 1 - read : read", "read", WRONG, "test_upsample_softmax_add"),
]
