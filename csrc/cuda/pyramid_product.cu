// The grouped products of the pyramid's convolution; see pyramid_product.cuh.
#include "pyramid_product.cuh"

namespace pspnet_fast::cuda {
namespace {

template <typename A, typename B, typename Out>
__global__ void __launch_bounds__(kProductThreads) pyramid_product_kernel(const __grid_constant__ Products products) {
  int block = static_cast<int>(blockIdx.x);
  const int which = product_of_block(products, block);
  product_tile<A, B, Out>(products.of[which], block, InPlace<B>{});
}

}  // namespace

void launch_products(ElementType type, Wide wide, Products products, cudaStream_t stream) {
  const unsigned blocks = number_blocks(products);
  if (blocks == 0) return;
  with_element(type, [&](auto element) {
    using T = decltype(element);
    if (wide == Wide::result) {
      PSPNET_FAST_LAUNCH(
          (pyramid_product_kernel<T, T, Acc<T>>), blocks, kProductThreads, 0, stream, products);
    } else {
      PSPNET_FAST_LAUNCH((pyramid_product_kernel<Acc<T>, T, T>), blocks, kProductThreads, 0, stream, products);
    }
  });
}

}  // namespace pspnet_fast::cuda
