"""Faults planted in csrc/cuda's kernels: each must turn the operator's own tests red (test_mutants.py)."""

from __future__ import annotations

from mutant import ASTRAY, BEYOND, ORDER, SPREAD, UNWRITTEN, WRONG, mutants_of

# In brackets the operator whose tests of the contract run.
OPTIONS, SIZES, ANY_SIZE = (
    f"tests/ops/test_operators.py::test_{of}" for of in ("options", "sizes", "any_size_and_options")
)
POOL = f"{SIZES}[pyramid_pool]"
POOL_ADD = "tests/ops/test_pyramid_pool_through.py::test_backward_add"
CONCAT = f"{OPTIONS}[pyramid_concat]"
CONCAT_SIZES = f"{SIZES}[pyramid_concat]"
CONV = f"{OPTIONS}[pyramid_conv and not norm]"
CONV_SIZES = f"{SIZES}[pyramid_conv and not norm]"
CONV_RELU = f"{OPTIONS}[pyramid_conv_norm_relu]"
SPECIAL = "tests/ops/test_special_values.py::test_pyramids[pyramid_conv]"
LEVELS = f"{SIZES}[pyramid_levels]"
LOSS = f"{OPTIONS}[upsample_cross_entropy]"
LOSS_SHAPES = "tests/ops/test_cross_entropy_paths.py::test_shapes"
ARGMAX = f"{OPTIONS}[upsample_argmax]"
CORRECT = "tests/ops/test_dual_cross_entropy.py::test_correct_pixels"
SOFTMAX_ADD = "tests/ops/test_upsample_softmax_add.py"

nchw, nhwc = (mutants_of(f"pyramid_pool_{layout}", POOL) for layout in ("nchw", "nhwc"))
nchw_packs, nhwc_packs = (mutants_of(f"pyramid_pool_{layout}", POOL, "pyramid_pool.cuh") for layout in ("nchw", "nhwc"))
concat_nchw, concat_nchw_bwd, concat_nhwc, concat_nhwc_bwd = (
    mutants_of(f"pyramid_concat_{of}", CONCAT) for of in ("nchw", "nchw_bwd", "nhwc", "nhwc_bwd")
)
conv_add, conv_gather = (mutants_of(f"pyramid_conv_{of}", CONV) for of in ("add", "gather"))
run_add, run_gather = (mutants_of(f"pyramid_conv_{of}", CONV, "pyramid_conv_run.cuh") for of in ("add", "gather"))
levels = mutants_of("pyramid_levels", LEVELS)
loss = mutants_of("cross_entropy", LOSS, "cross_entropy_tile.cuh")
finish = mutants_of("cross_entropy_finish", LOSS)
argmax = mutants_of("upsample_argmax", ARGMAX)
add_fwd, add_bwd = (mutants_of(file, f"{OPTIONS}[upsample_add]") for file in ("upsample_add", "upsample_add_bwd"))
softmax_add = mutants_of("upsample_softmax_add", f"{OPTIONS}[upsample_softmax_add]")

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
    nhwc("bins_barrier", "bin.area;\n    }\n  }\n  __syncthreads();\n", "bin.area;\n    }\n  }\n", ORDER),
    nhwc("staged_barrier", "[lane] = sum; });\n    __syncthreads();\n", "[lane] = sum; });\n", ORDER),
    nhwc_packs(  # no test of it has as many channels as float32 needs
        "batch_too_small", "sums[j] += load(pack.v[j]);", "sums[j] += load(pack.v[0]);", WRONG, every_type=True
    ),
    nchw_packs("written_over", "if constexpr (ADD) sums[j] += load(packs[i].v[j]);", "", WRONG, tests=POOL_ADD),
    nhwc_packs("last_bin", "r >= t.row_last[row]", "r > t.row_last[row]", WRONG),
    nhwc(
        "misaligned",
        "const bool aligned = t.channels % kVec == 0 && is_aligned(x, 16);",
        "const bool aligned = true;",
        r"misaligned address",
        "checked",
    ),
    concat_nchw("unwritten_channel", "shape.level_channels - begin)", "shape.level_channels - begin - 1)", UNWRITTEN),
    concat_nchw("unwritten_copy", "< packs) to[", "< packs - 1) to[", UNWRITTEN),
    concat_nchw("corner_too_far", "level.columns.next(j) - j", "1", BEYOND, "checked"),
    concat_nchw_bwd(
        "lines_barrier",
        "columns, lines);\n    __syncthreads();\n",
        "columns, lines);\n",
        ORDER,
    ),
    concat_nchw_bwd(
        "sums_barrier",
        "lines, totals);\n    __syncthreads();",
        "lines, totals);",
        ORDER,
        tests=CONCAT_SIZES,
        every_type=True,
    ),
    concat_nchw_bwd(
        "unwritten_node",
        "i < count; i += kThreads) output",
        "i < count - 1; i += kThreads) output",
        UNWRITTEN,
    ),
    concat_nchw_bwd("shared_too_small", "plan.parts * plan.tile + k)", "plan.parts * plan.tile)", BEYOND, "checked"),
    concat_nhwc("nodes_of_another_column", "if (j != column) {", "if (column < 0) {", WRONG),
    concat_nhwc("unwritten_pixel", "min(kColumns, shape.width - begin)", "shape.width - begin - 1", UNWRITTEN),
    concat_nhwc_bwd("unwritten_side", "side < 4; ++side", "side < 3; ++side", UNWRITTEN),
    concat_nhwc_bwd("sides_exchanged", "row_parts ? 2 : 0", "row_parts ? 0 : 2", WRONG),
    concat_nhwc_bwd("row_too_many", "h < rows.end; ++h", "h <= rows.end; ++h", BEYOND, "checked"),
    conv_add("staged_barrier", "return !__syncthreads_or(special != 0);", "return special == 0;", ORDER),
    conv_add("special", "!__syncthreads_or(special != 0)", "__syncthreads_or(1) != 0", SPREAD, tests=SPECIAL),
    conv_gather("special", "!__syncthreads_or(special != 0) ||", "!__syncthreads_or(0) ||", SPREAD, tests=SPECIAL),
    conv_add(
        "taps_barrier",
        "find_row_taps(t, h, taps);\n    __syncwarp();",
        "find_row_taps(t, h, taps);",
        ASTRAY,
        "checked",
    ),
    conv_add("terms_barrier", "    __syncwarp();\n\n    if (!finite)", "\n    if (!finite)", ORDER),
    conv_add(
        "wrong_tap",
        "tap[i].bottom_weight * q.data[bottom[i] + at]",
        "tap[i].bottom_weight * q.data[top[i] + at]",
        WRONG,
    ),
    conv_add("term_missing", "term < t.terms; ++term", "term < t.terms - 1; ++term", WRONG),
    conv_add(
        "channel_too_many",
        "i * 32 + lane < there ? from[i * 32 + lane] : Real(0)",
        "from[i * 32 + lane]",
        BEYOND,
        "checked",
    ),
    conv_add("no_epilogue", "norm.mean != nullptr ? shared.norm[o", "false ? shared.norm[o", WRONG, tests=CONV_RELU),
    conv_gather(
        "sums_barrier",
        "add_rows(t, shared, rows, global_sum);\n    }\n    __syncthreads();",
        "add_rows(t, shared, rows, global_sum);\n    }",
        ORDER,
        tests=CONV_SIZES,
    ),
    conv_gather(
        "rows_barrier",
        "(t, shared.u, staged, terms);\n      }\n    }\n    __syncthreads();",
        "(t, shared.u, staged, terms);\n      }\n    }\n",
        ORDER,
    ),
    conv_gather(
        "staged_barrier",
        "shared.rows + warp * t.row_terms);\n      __syncwarp();",
        "shared.rows + warp * t.row_terms);",
        ORDER,
    ),
    conv_gather("replaced_barrier", "__syncwarp();  // all have read what G may take the place of", "", ORDER),
    conv_gather("missing_run", "in_batches<4>(\n      count,", "in_batches<4>(\n      count - 1,", WRONG),
    conv_gather(
        "row_missing",
        "const int rows = min(grid.warps, run.last_row - first);",
        "const int rows = min(grid.warps, run.last_row - first - 1);",
        WRONG,
    ),
    conv_gather("element_too_many", "if (i >= filters) return;", "if (i > filters) return;", BEYOND, "checked"),
    conv_gather(
        "unwritten_sums",
        "    if (grid.staged) global_sum(p) = staged_sum(p);\n    special += Real(0) * global_sum(p);\n",
        "",
        UNWRITTEN,
    ),
    run_add("column_too_many", "i < lines && j < line ?", "i <= lines && j <= line ?", BEYOND, "checked"),
    run_gather("padding", "w < t.width ? w + dx - t.kernel_width / 2 : -1", "w + dx - t.kernel_width / 2 + 1", WRONG),
    levels("norm_of_another_level", "first_bin + bin >= norms", "first_bin + bin > norms", WRONG),
    levels("unwritten_bin", "if (lane >= count) return;", "if (lane >= count - 1) return;", UNWRITTEN),
    levels("tile_barrier", "      });\n  __syncthreads();\n", "      });\n", ORDER),
    loss("staged_barrier", "    __syncwarp();\n    visit(first, count);", "    visit(first, count);", ORDER),
    loss("corners_barrier", "== nullptr;\n  __syncwarp();", "== nullptr;", ORDER),
    loss(
        "unwritten_node", "min(kOwnedNodes, nodes - first_node)", "min(kOwnedNodes, nodes - first_node - 1)", UNWRITTEN
    ),
    loss("class_too_many", "return c < count; });", "return c <= count; });", BEYOND, "checked"),
    loss("last_node", "lane.node() < ROWS &&", "lane.node() < 1 &&", WRONG, tests=LOSS_SHAPES),
    finish("barrier", "half /= 2) {\n    __syncthreads();", "half /= 2) {", ORDER),
    finish("edge_too_many", "* kThreads, values - 1);", "* kThreads, values);", BEYOND, "checked"),
    argmax("last_row_left_out", "max(first, logit(rows.count - 1))", "first", WRONG),
    argmax("column_too_many", "  if (x >= p.columns.out) rows.count = 0;\n", "", BEYOND, "checked"),
    argmax(
        "exited_lanes",
        "if (p.correct == nullptr) return;",
        "if (p.correct == nullptr || rows.count == 0) return;",
        r"which is not active",
        tests=CORRECT,
    ),
    add_fwd("taps_barrier", "first, taps);\n  __syncthreads();", "first, taps);", ASTRAY, "checked"),
    add_fwd("wrong_row", "bins + tap.second * stride", "bins + tap.first * stride", WRONG),
    add_fwd("row_too_many", "min(r, rows - 1) *", "r *", BEYOND, "checked", tests=f"{ANY_SIZE}[upsample_add]"),
    add_bwd("cell_in_front", "int i = begin - 1; i < end", "int i = begin; i < end", WRONG),
    add_bwd("lines_barrier", "shared.lines);\n    __syncthreads();", "shared.lines);", ORDER),
    add_bwd("tile_barrier", "    __syncthreads();\n  } while", "  } while", ORDER, tests=f"{SIZES}[upsample_add]"),
    softmax_add("column_too_many", "  if (x >= p.width) return;\n", "", BEYOND, "checked"),
    softmax_add(
        "maximum",
        "if (!(logit <= pixel.most)) pixel.most = logit;",
        "pixel.most = 0;",
        SPREAD,
        tests=f"{SOFTMAX_ADD}::test_logits_far_apart",
    ),
    softmax_add(
        "weight_of_nothing",
        "if (row[i].weight == 0 || column[j].weight == 0) continue;\n        sum",
        "sum",
        SPREAD,
        tests=f"{SOFTMAX_ADD}::test_what_is_not_finite_stays_at_its_pixels",
    ),
    softmax_add("flip", "flip ? axis.out - 1 - read : read", "read", WRONG),
]
