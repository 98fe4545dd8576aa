// y = x Wᵀ in bfloat16 with float32 sums, for a handful of rows: as little as can stand between weights in
// memory and a processor's dot products. Weights W [outputs, inputs], row after row; x [rows, inputs];
// y [rows, outputs]. Outputs are shared out among threads in runs of four; inputs are a multiple of 32.
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace {

constexpr long kRun = 4;
constexpr long kLane = 32;
constexpr long kAhead = 4096;  // bytes

template <int rows>
void multiply(const uint16_t* weights, const uint16_t* x, float* y, long outputs, long inputs) {
#pragma omp parallel
  {
    const long share = (outputs / kRun + omp_get_num_threads() - 1) / omp_get_num_threads() * kRun;
    const long begin = omp_get_thread_num() * share;
    const long end = std::min(outputs, begin + share);
    for (long output = begin; output < end; output += kRun) {
      __m512 sums[kRun][rows] = {};
      for (long input = 0; input < inputs; input += kLane) {
        for (long run = 0; run < kRun; ++run) {
          const uint16_t* place = weights + (output + run) * inputs + input;
          _mm_prefetch(reinterpret_cast<const char*>(place) + kAhead, _MM_HINT_T0);
          const auto weight = (__m512bh)_mm512_loadu_si512(place);
          for (int row = 0; row < rows; ++row) {
            const auto value = (__m512bh)_mm512_loadu_si512(x + row * inputs + input);
            sums[run][row] = _mm512_dpbf16_ps(sums[run][row], weight, value);
          }
        }
      }
      for (long run = 0; run < kRun; ++run)
        for (int row = 0; row < rows; ++row)
          y[row * outputs + output + run] = _mm512_reduce_add_ps(sums[run][row]);
    }
  }
}

}  // namespace

extern "C" void multiply_1(const uint16_t* w, const uint16_t* x, float* y, long n, long k) {
  multiply<1>(w, x, y, n, k);
}
extern "C" void multiply_4(const uint16_t* w, const uint16_t* x, float* y, long n, long k) {
  multiply<4>(w, x, y, n, k);
}
extern "C" void multiply_8(const uint16_t* w, const uint16_t* x, float* y, long n, long k) {
  multiply<8>(w, x, y, n, k);
}
