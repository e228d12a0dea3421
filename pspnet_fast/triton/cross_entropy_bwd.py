"""The gradient of the summed losses by the low-resolution logits, gathered cell by cell.

A thread owns a cell for a few classes: it walks the pixels of the cell, column after column, recomputes every class's
probability from the softmax that the forward kernel left, and keeps the gradients of the cell's four nodes in
registers. A node then is the sum over its (up to) four cells. Left and right meet inside a program: a block's first
cell belongs to the block before it, too, and is computed twice. Above and below meet in memory: the cell rows of even
number write both their rows of nodes, and then, in a launch of their own, those of odd number add to them. Every sum
has one order, and there is no atomic.

A pixel and class costs an exponential and 15 more instructions (sm_90, 8 classes a thread: 158 registers, no spills, 12
warps on a multiprocessor with 8 independent chains each). A pixel's 12 bytes of softmax are read once a block of
classes, coalesced, as they lie in the order of slots (see Cells).
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from pspnet_fast.triton.bilinear import interpolate, second_node
from pspnet_fast.triton.cross_entropy_fwd import choose


@triton.jit
def add_left_neighbour(left, right, CLASSES: tl.constexpr, CELLS: tl.constexpr):
    """A node's sum along a row: its own cell's left corner, and the right corner of the cell before it."""
    lane = tl.arange(0, CELLS)
    before = tl.broadcast_to(tl.maximum(lane - 1, 0)[None, :], [CLASSES, CELLS])
    return left + tl.where((lane > 0)[None, :], tl.gather(right, before, axis=1), 0.0)


@triton.jit(do_not_specialize=["classes", "low_height", "low_width", "height", "width", "slots"])
def cross_entropy_bwd_kernel(
    main,  # [B, C, h, w], by its strides
    aux,  # the same
    main_grad,  # [B, C, h, w], by its strides
    aux_grad,  # the same
    softmax,  # [2 or 3, heads, B, H, slots], see cross_entropy_fwd_kernel
    softmax_label,  # [heads, B, H, slots]
    class_table,  # [3, C] or None
    row_edge,  # the tables of both axes, see Cells
    row_t,
    column_edge,
    column_slot_t,
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
    grad_stride_b,
    grad_stride_c,
    grad_stride_h,
    grad_stride_w,
    PARITY: tl.constexpr,  # of the cell rows that this launch takes
    PIXEL_WEIGHTS: tl.constexpr,
    SMOOTHING: tl.constexpr,
    CLASSES: tl.constexpr,
    CELLS: tl.constexpr,
):
    # Neighbouring programs take other classes of the same pixels.
    head, image = tl.program_id(2), tl.program_id(1).to(tl.int64)
    class_blocks, cell_blocks = tl.cdiv(classes, CLASSES), tl.cdiv(tl.maximum(low_width - 1, 1), CELLS - 1)
    class_ = (tl.program_id(0) % class_blocks) * CLASSES + tl.arange(0, CLASSES)
    block = (tl.program_id(0) // class_blocks) % cell_blocks
    near_row = 2 * (tl.program_id(0) // (class_blocks * cell_blocks)).to(tl.int64) + PARITY
    lane = tl.arange(0, CELLS)
    cell = block * (CELLS - 1) + lane
    first, end = tl.load(row_edge + near_row), tl.load(row_edge + near_row + 1)
    begin = tl.load(column_edge + cell, mask=cell < low_width, other=0)
    count = tl.load(column_edge + cell + 1, mask=cell < low_width, other=0) - begin

    # 1. The logits of every cell's corners.
    dtype = softmax.dtype.element_ty
    valid = (class_ < classes)[:, None] & (cell < low_width)[None, :]
    top_nodes = (
        choose(head, main, aux) + image * stride_b + near_row * stride_h + class_.to(tl.int64)[:, None] * stride_c
    )
    bottom_nodes = top_nodes + (second_node(near_row, low_height, height) - near_row) * stride_h
    left = cell.to(tl.int64)[None, :] * stride_w
    right = second_node(cell, low_width, width).to(tl.int64)[None, :] * stride_w
    top_left = tl.load(top_nodes + left, mask=valid, other=0.0).to(dtype)
    top_right = tl.load(top_nodes + right, mask=valid, other=0.0).to(dtype)
    bottom_left = tl.load(bottom_nodes + left, mask=valid, other=0.0).to(dtype)
    bottom_right = tl.load(bottom_nodes + right, mask=valid, other=0.0).to(dtype)

    # 2. What a pixel takes off a class that is its label, and off one that is not.
    hit = tl.full([CLASSES, 1], 1.0, dtype=dtype)
    miss = tl.zeros([CLASSES, 1], dtype=dtype)
    if class_table is not None:
        hit = tl.load(class_table + classes + class_, mask=class_ < classes, other=0.0)[:, None]
        if SMOOTHING:
            miss = tl.load(class_table + 2 * classes + class_, mask=class_ < classes, other=0.0)[:, None]
            hit += miss

    # 3. Over the pixels of the cells: column k of each, then down the rows.
    grad_top_left = tl.zeros([CLASSES, CELLS], dtype=dtype)
    grad_top_right = tl.zeros([CLASSES, CELLS], dtype=dtype)
    grad_bottom_left = tl.zeros([CLASSES, CELLS], dtype=dtype)
    grad_bottom_right = tl.zeros([CLASSES, CELLS], dtype=dtype)
    plane = tl.num_programs(2) * tl.num_programs(1).to(tl.int64) * height * slots
    rows = (head * tl.num_programs(1) + image) * height
    for k in range(0, tl.max(count, axis=0)):
        present = k < count
        slot = k * low_width + cell
        tx = tl.load(column_slot_t + slot, mask=present, other=0.0)[None, :]
        top = interpolate(top_left, top_right, tx)
        bottom = interpolate(bottom_left, bottom_right, tx)
        grad_top = tl.zeros([CLASSES, CELLS], dtype=dtype)
        grad_bottom = tl.zeros([CLASSES, CELLS], dtype=dtype)
        for row in range(first, end):
            ty = tl.load(row_t + row)
            place = (rows + row) * slots + slot
            m = tl.load(softmax + place, mask=present, other=float("inf"))[None, :]
            share = tl.load(softmax + plane + place, mask=present, other=0.0)[None, :]
            label = tl.load(softmax_label + place, mask=present, other=-1)[None, :]
            taken = tl.where(label == class_[:, None], hit, miss)
            if PIXEL_WEIGHTS:
                taken *= tl.load(softmax + 2 * plane + place, mask=present, other=0.0)[None, :]
            elif SMOOTHING:
                taken = tl.where(label >= 0, taken, 0.0)
            grad = tl.exp(interpolate(top, bottom, ty) - m) * share - taken
            grad_top += (1 - ty) * grad
            grad_bottom += ty * grad
        # A cell without a k-th column may have logits that are not finite.
        grad_top = tl.where(present[None, :], grad_top, 0.0)
        grad_bottom = tl.where(present[None, :], grad_bottom, 0.0)
        grad_top_left += (1 - tx) * grad_top
        grad_top_right += tx * grad_top
        grad_bottom_left += (1 - tx) * grad_bottom
        grad_bottom_right += tx * grad_bottom

    # 4. From corners to nodes: along the rows here, down the columns in memory. The last cell's nodes are one. At equal
    # sizes so are every cell's; their second node's part is 0, or NaN.
    grad_top_right = tl.where(low_width == width, 0.0, grad_top_right)
    grad_bottom_right = tl.where(low_width == width, 0.0, grad_bottom_right)
    grad_bottom_left = tl.where(low_height == height, 0.0, grad_bottom_left)
    grad_bottom_right = tl.where(low_height == height, 0.0, grad_bottom_right)
    last = (cell == low_width - 1)[None, :]
    grad_top_left += tl.where(last, grad_top_right, 0.0)
    grad_bottom_left += tl.where(last, grad_bottom_right, 0.0)
    # (Masks compare with a scalar rather than hold one: triton 3.9's interpreter makes integers of a scalar condition.)
    owned = valid & (lane >= tl.minimum(block, 1))[None, :]
    grad_node = add_left_neighbour(grad_top_left, grad_top_right, CLASSES, CELLS)
    grad_node_below = add_left_neighbour(grad_bottom_left, grad_bottom_right, CLASSES, CELLS)
    node = choose(head, main_grad, aux_grad) + image * grad_stride_b + near_row * grad_stride_h
    node = node + class_.to(tl.int64)[:, None] * grad_stride_c + cell.to(tl.int64)[None, :] * grad_stride_w
    has_below = owned & (class_ < tl.where(near_row + 1 < low_height, classes, 0))[:, None]
    grad_node += tl.where(near_row + 1 < low_height, 0.0, grad_node_below)
    if PARITY == 1:
        grad_node += tl.load(node, mask=owned, other=0.0)
        grad_node_below += tl.load(node + grad_stride_h, mask=has_below, other=0.0)
    tl.store(node, grad_node, mask=owned)
    tl.store(node + grad_stride_h, grad_node_below, mask=has_below)
