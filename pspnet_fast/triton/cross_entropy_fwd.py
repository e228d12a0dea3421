"""Every pixel's loss from low-resolution logits, and what the gradient kernel needs of its softmax.

A program takes a tile of pixels that lie between the same two rows of nodes, and walks down the classes. A class costs
a column two nodes above and two below, one interpolation each, and then every pixel one interpolation and one
exponential: the running sum is rescaled by the same exponential that it would gain,

    z <= m:  s += exp(z - m)             z > m:  s = s · exp(m - z) + 1, m = z.

That is an exponential and 16 more instructions a pixel and class (sm_90, 8 rows a tile: 128 registers, no spills, 16
warps on a multiprocessor with 8 independent chains each), so the issue of instructions is the limit, at about twice the
8 cycles a warp that NVIDIA's special-function units want. Logits come from the L1 cache; a pixel's bytes are its label,
and with a gradient 12 bytes a head of softmax for the kernel that follows.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from pspnet_fast.triton.bilinear import exceeds, interpolate_tile, second_node


@triton.jit
def choose(head, main, aux):
    """The pointer of this program's head."""
    chosen = main
    if head == 1:
        chosen = aux
    return chosen


@triton.jit
def sum_tile(values):
    return tl.sum(tl.sum(values, axis=1), axis=0)


@triton.jit(do_not_specialize=["classes", "low_height", "low_width", "height", "width", "slots", "ignore_index"])
def cross_entropy_fwd_kernel(
    main,  # [B, C, h, w], by its strides
    aux,  # the same
    target,  # [B, H, W]
    pixel_weight,  # [B, H, W] or None
    class_table,  # [3, C], see class_table(); None where no class differs from another
    row_cell,  # the tables of both axes, see Cells
    row_t,
    tile_edge,
    column_cell,
    column_t,
    column_slot,
    softmax,  # [2 or 3, heads, B, H, slots]: m, share, and with pixel weights q; None without a gradient
    softmax_label,  # [heads, B, H, slots]: the label, or -1
    main_loss,  # [B, H, W] or None
    aux_loss,
    partial,  # [heads + 1, programs a head]: sums of losses, and the divisor's
    labels,  # [B, H, W], the main head's most likely class, or None
    correct,  # [programs a head], its pixels whose label that is, or None
    bad_label,  # [1], where a label out of range is noted, or None where there is none
    classes,
    low_height,
    low_width,
    height,
    width,
    slots,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    ignore_index,
    SMOOTHING: tl.constexpr,
    LOWEST: tl.constexpr,  # the most negative finite number
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    head, image = tl.program_id(2), tl.program_id(1).to(tl.int64)
    blocks = tl.cdiv(width, COLUMNS)
    tile = tl.program_id(0) // blocks
    first, end = tl.load(tile_edge + tile), tl.load(tile_edge + tile + 1)
    row = first + tl.arange(0, ROWS)
    column = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)

    # 1. Where the tile reads: two rows of nodes, and two nodes in each for every column.
    near_row = tl.load(row_cell + first).to(tl.int64)
    near = tl.load(column_cell + column, mask=column < width, other=0).to(tl.int64)
    top = choose(head, main, aux) + image * stride_b + near_row * stride_h
    bottom = top + (second_node(near_row, low_height, height) - near_row) * stride_h
    left, right = near * stride_w, second_node(near, low_width, width) * stride_w
    tx = tl.load(column_t + column, mask=column < width, other=0.0)[None, :]
    ty = tl.load(row_t + row, mask=row < end, other=0.0)[:, None]

    # 2. Down the classes: the largest logit m, s = Σ exp(z - m), and for smoothing Σ even_c · z_c.
    dtype = partial.dtype.element_ty
    m = tl.full([ROWS, COLUMNS], LOWEST, dtype=dtype)  # not -Inf, which would meet a logit of -Inf as Inf - Inf
    s = tl.zeros([ROWS, COLUMNS], dtype=dtype)
    best = tl.zeros([ROWS, COLUMNS], dtype=tl.int32)
    even_dot = tl.zeros([ROWS, COLUMNS], dtype=dtype)
    even_sum = tl.zeros([], dtype=dtype)
    top_c, bottom_c = top, bottom
    for c in range(classes):
        z = interpolate_tile(top_c, bottom_c, left[None, :], right[None, :], tx, ty)
        larger = exceeds(z, m)
        e = tl.exp(-tl.abs(z - m))
        s = tl.where(larger, s * e + 1, s + e)
        m = tl.where(larger, z, m)
        best = tl.where(larger, c, best)
        if SMOOTHING:
            even = tl.load(class_table + 2 * classes + c)
            even_sum += even
            even_dot += even * z
        top_c += stride_c
        bottom_c += stride_c
    s = tl.where(m == float("inf"), float("nan"), s)  # Inf - Inf, in PyTorch

    # 3. The pixels that count, and the label's own logit.
    inside = (row < end)[:, None] & (column < width)[None, :]
    pixel = (image * height + row)[:, None] * width + column[None, :]
    y = tl.load(target + pixel, mask=inside, other=0).to(tl.int64)
    scored = inside & (y != ignore_index)
    known = (y >= 0) & (y < classes)
    if bad_label is not None:
        tl.store(bad_label + tl.zeros_like(y), y, mask=scored & ~known)
    scored = scored & known
    y = tl.where(scored, y, 0)
    z_y = interpolate_tile(top + y * stride_c, bottom + y * stride_c, left[None, :], right[None, :], tx, ty)

    # 4. loss = q · (hit_y · (lse - z_y) + Σ_c even_c · (lse - z_c)).
    log_s = tl.log(s)
    loss = (m - z_y) + log_s
    divisor = scored.to(dtype)
    scale = divisor
    if class_table is not None:
        hit = tl.load(class_table + classes + y)
        loss *= hit
        if SMOOTHING:
            loss += (m + log_s) * even_sum - even_dot
        divisor *= tl.load(class_table + y)
        scale *= hit + even_sum
    if pixel_weight is not None:
        q = tl.load(pixel_weight + pixel, mask=scored, other=0.0)
        loss *= q
        divisor *= q
        scale *= q
    loss = tl.where(scored, loss, 0.0)

    # 5. Results. The partial sums have one owner each, whatever the order in which programs run.
    programs = tl.num_programs(0) * tl.num_programs(1)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    if main_loss is not None:
        tl.store(choose(head, main_loss, aux_loss) + pixel, loss, mask=inside)
    tl.store(partial + head * programs + program, sum_tile(loss))
    if head == 0:
        tl.store(partial + tl.num_programs(2) * programs + program, sum_tile(divisor))
        if labels is not None:
            tl.store(labels + pixel, best.to(tl.int64), mask=inside)
        if correct is not None:
            tl.store(correct + program, sum_tile((scored & (best == y)).to(tl.int32)))
    if softmax is not None:
        slot = tl.load(column_slot + column, mask=column < width, other=0)
        plane = tl.num_programs(2) * tl.num_programs(1).to(tl.int64) * height * slots
        place = ((head * tl.num_programs(1) + image) * height + row)[:, None] * slots + slot[None, :]
        tl.store(softmax + place, m, mask=inside)
        tl.store(softmax + plane + place, scale / s, mask=inside)
        tl.store(softmax_label + place, tl.where(scored, y, -1).to(tl.int32), mask=inside)
        if pixel_weight is not None:
            tl.store(softmax + 2 * plane + place, q, mask=inside)
