// Products over tensors in place, several in one launch: no operand is permuted, copied or padded first.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "pyramid_pool.h"

namespace pspnet_fast::cuda {

// An axis of a product runs over one or two axes of a tensor: index i is (i / inner, i % inner).
struct Axis {
  int32_t size, inner;
};
struct Strides {
  int64_t outer, inner;
};

// How a side of a product is read: the axis along which neighbours lie in memory, and whether 16 bytes at once.
enum class Reading : int32_t { along_depth, along_rows, packs_along_depth, packs_along_rows };

struct Side {
  const void* data;
  Strides row, depth;
  Reading reading;
};

// Fixed statistics of a normalisation; absent where `mean` is null.
struct Norm {
  const void *mean, *var, *gamma, *beta;  // of the accumulator's type if `wide`, else of the map's
  double eps;
  bool wide;
};

// c[m, n] = Σ_k a[m, k] · b[n, k], then relu(norm by m) where there is one.
struct Product {
  Axis m, n, k;
  Side a, b;
  void* c;
  Strides c_row, c_column;
  Norm norm;
  bool c_along_rows;    // neighbours in c differ by m
  int32_t first_block;  // filled in by the launcher
};

struct Products {
  int32_t count;
  Product of[kMaxLevels];
};

// All is of `type`, but the result or side a is of the accumulator's (float, double for f64).
enum class Wide { result, a };
void launch_products(ElementType type, Wide wide, Products products, cudaStream_t stream);

}  // namespace pspnet_fast::cuda
