#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace razor {
namespace {

const Kernels& choose() {
#if defined(RAZOR_X86_KERNELS)
  const char* asked = std::getenv("RAZOR_FAST_CPU");
  const bool baseline = asked != nullptr && std::strcmp(asked, "baseline") == 0;
  const bool narrow = asked != nullptr && std::strcmp(asked, "avx2") == 0;
  __builtin_cpu_init();
  // these ask the system as well as the processor: registers it does not save are not offered
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && !baseline && !narrow) return kernels_avx512;
  if (avx2 && !baseline) return kernels_avx2;
#endif
  return kernels_baseline;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace razor

// For the report of razor_fast.env, by ctypes.
extern "C" __attribute__((visibility("default"))) const char* razor_fast_cpu_kernels() { return razor::kernels().name; }
