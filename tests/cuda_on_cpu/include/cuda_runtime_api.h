// As in CUDA, without the compiler's part.
#pragma once

#include "cuda_runtime.h"
