// What leaves a task: rows of the gradient, and losses of pixels. Included by kernel files inside their namespace.

// Write or add [C, padded] to [C, w] of these strides; what lies behind the map belongs to its last node. (In front of it
// stands nothing: its cells' pixels have no share of their left nodes.)
template <typename Real>
void write_nodes(const CrossEntropyProblem& p, int64_t padded, Real* from, Real* to, int64_t stride_c, int64_t stride_w, bool add) {
  const int64_t width = p.columns.nodes, before = -p.columns.first_node;
  for (int64_t c = 0; c < p.classes; ++c) {
    Real* row = from + c * padded;
    for (int64_t q = before + width; q <= p.columns.cells; ++q) row[before + width - 1] += row[q];
  }
  constexpr int64_t n = kLanes<Real>;
  if (stride_w != 1 && !add && p.classes >= n && width >= n) {
    for_overlapping_blocks(p.classes, n, [&](int64_t c0) {
      for_overlapping_blocks(width, n, [&](int64_t w0) {
        Lanes<Real> block[n];
        for (int64_t i = 0; i < n; ++i) block[i] = get(from + (c0 + i) * padded + before + w0);
        transpose<Real>(block);
        for (int64_t i = 0; i < n; ++i) put(to + (w0 + i) * stride_w + c0, block[i]);
      });
    });
    return;
  }
  for (int64_t c = 0; c < p.classes; ++c) {
    const Real* row = from + c * padded + before;
    Real* out = to + c * stride_c;
    if (stride_w == 1) {
      for (int64_t w = 0; w < width; ++w) out[w] = add ? out[w] + row[w] : row[w];
    } else {
      for (int64_t w = 0; w < width; ++w) out[w * stride_w] = add ? out[w * stride_w] + row[w] : row[w];
    }
  }
}

// The row of nodes above cell row r has all that this task gives to it. The first one it shares with the task above,
// which writes it: its part waits aside. Beyond the map two rows fall on one row of nodes: the second adds.
template <typename Real>
void emit_gradient(Workspace<Real>& ws, int64_t head, int64_t task, int64_t b, int64_t r) {
  const CrossEntropyProblem& p = ws.p;
  if (in_front(p.rows, r)) return;
  const int64_t begin = task_begin(p, task % p.tasks_per_image), h = node_at(p.rows, r);
  const bool shared = begin > 0 && h == node_at(p.rows, begin), add = r > begin && !in_front(p.rows, r - 1) && h == node_at(p.rows, r - 1);
  if (shared) {
    Real* to = static_cast<Real*>(p.head[head].boundary) + task * p.classes * p.columns.nodes;
    write_nodes(p, ws.padded, ws.carry[head][r & 1], to, p.columns.nodes, 1, add);
  } else {
    Real* to = static_cast<Real*>(p.head[head].grad) + b * p.stride_b + h * p.stride_h;
    write_nodes(p, ws.padded, ws.carry[head][r & 1], to, p.stride_c, p.stride_w, add);
  }
}

// Losses of the pixels of cell row r, from how far their labels lie behind the log-sum-exps.
template <typename Real>
void emit_losses(Workspace<Real>& ws, int64_t head, int64_t b, int64_t r) {
  const CrossEntropyProblem& p = ws.p;
  const Real *above = ws.nodes[head][r & 1], *below = ws.nodes[head][p.rows.nodes == p.out_height ? r & 1 : (r & 1) ^ 1];
  for (int64_t j = 0; j < p.rows.count[r]; ++j) {
    const int64_t line = (b * p.out_height + p.rows.begin[r] + j) * p.out_width;
    const Real s = static_cast<Real>(fraction_in(p.rows, r, j));
    for (int64_t q = 0; q < p.columns.cells; ++q) {
      for (int64_t k = 0; k < p.columns.count[q]; ++k) {
        const int64_t pixel = line + p.columns.begin[q] + k, label = read_label(p.label_type, p.target, pixel);
        Real& loss = static_cast<Real*>(p.head[head].loss)[pixel];
        loss = 0;
        if (label == p.ignore_index || label < 0 || label >= p.classes) continue;
        const Real t = ws.fraction[k * ws.padded + q];
        const Real behind = ws.loss[(j * p.columns.most + k) * ws.padded + q];
        const auto logit = [&](int64_t c) {
          const Real *a = above + c * ws.padded + q, *b = below + c * ws.padded + q;
          return (1 - s) * ((1 - t) * a[0] + t * a[ws.right]) + s * ((1 - t) * b[0] + t * b[ws.right]);
        };
        loss = ws.own * ws.class_weight(label) * behind;
        if (ws.smooth > 0) {
          const Real own = logit(label);
          Real spread = 0;
          for (int64_t c = 0; c < p.classes; ++c) {
            spread += ws.class_weight(c) * (c == label || __builtin_isinf(behind) ? behind : behind + (own - logit(c)));
          }
          loss += ws.smooth * spread;
        }
        if (p.pixel_weight) loss *= static_cast<const Real*>(p.pixel_weight)[pixel];
      }
    }
  }
}
