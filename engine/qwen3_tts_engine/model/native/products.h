// Products of a few rows with weights that are read in order, once for all rows that fit into registers.

#pragma once

#include "crew.h"
#include "simd.h"

extern "C" {

// Weights in groups of 4 bytes along the inputs (1 float32, 2 bfloat16, 4 int8), the groups of a block of
// outputs side by side: [outputs / block][inputs / group][block][group].
struct Product {
  const uint8_t* weights;
  const float* scales;      // [outputs] of int8, else null
  const int32_t* offsets;   // [outputs] of int8: 128 times the sum of an output's weights
  int64_t outputs, inputs;  // a multiple of the block, and of the group
};
}

namespace {

constexpr int64_t kBlock = 2 * kLanes;  // outputs whose weights lie side by side
constexpr int64_t kGroupBytes = 4;      // of an output's weights, that lie side by side
constexpr int64_t kPrefetchedBytes = 4096;

// --- formats ---------------------------------------------------------------------------------------------
//
// What weights are, how a row is laid out for them, and how one register of weights, times the inputs they
// are for, adds up. `kRows`: as many as have their sums in registers.

struct Float32 {
  using Group = float;  // a row's inputs for one group of weights
  using Sum = Floats;
  static constexpr int64_t kInputs = 1;  // in a group
  static constexpr int kRows = kLanes == 16 ? 12 : 6;

  static Sum add(Sum sum, Words weights, Group input) { return fma(as_floats(weights), spread(input), sum); }
  static float lay_out(const float* row, int64_t size, Group* laid_out) {
    std::memcpy(laid_out, row, size * sizeof(float));
    return 1.0f;
  }
  static Floats value(Sum sum, const Product&, int64_t, float) { return sum; }
};

#if defined(__AVX512F__)

// The processor's product of bfloat16 pairs wants the row in bfloat16, too.
struct Bfloat16 {
  using Group = int32_t;
  using Sum = Floats;
  static constexpr int64_t kInputs = 2;
  static constexpr int kRows = 8;

  static Sum add(Sum sum, Words weights, Group inputs) {
    return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)spread(inputs));
  }
  static float lay_out(const float* row, int64_t size, Group* laid_out) {
    for (int64_t i = 0; i < size; i += kLanes)
      store(reinterpret_cast<uint16_t*>(laid_out) + i, load(row + i));
    return 1.0f;
  }
  static Floats value(Sum sum, const Product&, int64_t, float) { return sum; }
};

// The processor multiplies unsigned by signed bytes: rows are shifted by 128, which the offsets take back.
struct Int8 {
  using Group = int32_t;
  using Sum = Words;
  static constexpr int64_t kInputs = 4;
  static constexpr int kRows = 8;

  static Sum add(Sum sum, Words weights, Group inputs) {
    return _mm512_dpbusd_epi32(sum, spread(inputs), weights);
  }
  static void narrow(Words levels, uint8_t* to) {
    const Words shifted = plus(levels, spread(128));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(shifted));
  }
  static Words exact(Sum sum, const int32_t* offsets) { return minus(sum, load_words(offsets)); }
#else

// A pair's weights are the halves of a word: each becomes a float32 where it stands.
struct Bfloat16 {
  struct Group {
    float first, second;
  };
  using Sum = Floats;
  static constexpr int64_t kInputs = 2;
  static constexpr int kRows = 4;

  static Sum add(Sum sum, Words weights, Group inputs) {
    const Floats first = as_floats(shift_left(weights, 16));
    const Floats second = as_floats(both(weights, spread(static_cast<int32_t>(0xffff0000))));
    return fma(second, spread(inputs.second), fma(first, spread(inputs.first), sum));
  }
  static float lay_out(const float* row, int64_t size, Group* laid_out) {
    std::memcpy(laid_out, row, size * sizeof(float));
    return 1.0f;
  }
  static Floats value(Sum sum, const Product&, int64_t, float) { return sum; }
};

// The processor multiplies unsigned by signed bytes and adds up pairs in 16 bits, which 127 · 127 · 2 does
// not leave: the inputs' signs go to the weights.
struct Int8 {
  using Group = int32_t;
  using Sum = Words;
  static constexpr int64_t kInputs = 4;
  static constexpr int kRows = 4;

  static Sum add(Sum sum, Words weights, Group inputs) {
    const Words row = spread(inputs);
    const Words pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(row), _mm256_sign_epi8(weights, row));
    return plus(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static void narrow(Words levels, uint8_t* to) {
    const Words halves = _mm256_permute4x64_epi64(_mm256_packs_epi32(levels, levels), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(halves), _mm256_castsi256_si128(halves));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), bytes);
  }
  static Words exact(Sum sum, const int32_t*) { return sum; }
#endif

  // To int8, one scale for the row.
  static float lay_out(const float* row, int64_t size, Group* laid_out) {
    Floats most = spread(1e-30f);
    for (int64_t i = 0; i < size; i += kLanes) most = larger(most, magnitude(load(row + i)));
    const float scale = largest(most) / 127;
    const Floats factor = spread(1 / scale);
    for (int64_t i = 0; i < size; i += kLanes)
      narrow(to_words(load(row + i) * factor), reinterpret_cast<uint8_t*>(laid_out) + i);
    return scale;
  }
  static Floats value(Sum sum, const Product& product, int64_t output, float row_scale) {
    const Words whole = exact(sum, product.offsets + output);
    return to_floats(whole) * (load(product.scales + output) * spread(row_scale));
  }
};

// --- rows ------------------------------------------------------------------------------------------------

// Rows as a product reads them. Every thread lays out its own: that is cheaper than to wait for another's.
struct Inputs {
  uint8_t* memory;  // a multiple of `stride` bytes
  float* scales;    // [R]
  int64_t stride;

  static int64_t stride_of(int64_t widest) { return widest * sizeof(float); }  // whatever the format

  template <class Format>
  void take(int64_t row, const float* values, int64_t size) {
    scales[row] = Format::lay_out(values, size, groups<Format>(row));
  }
  template <class Format>
  typename Format::Group* groups(int64_t row) const {
    return reinterpret_cast<typename Format::Group*>(memory + row * stride);
  }
};

// --- products --------------------------------------------------------------------------------------------

template <class Format>
struct Sums {
  typename Format::Sum low[Format::kRows], high[Format::kRows];
};

// One block's outputs of the rows from `first` on.
template <class Format, int rows>
void multiply_block(const uint8_t* weights, int64_t groups, const Inputs& inputs, int64_t first,
                    Sums<Format>& sums) {
  const typename Format::Group* of[rows];
  for (int row = 0; row < rows; ++row) of[row] = inputs.groups<Format>(first + row);
  typename Format::Sum low[rows] = {}, high[rows] = {};
  for (int64_t group = 0; group < groups; ++group, weights += kBlock * kGroupBytes) {
    for (int64_t line = 0; line < kBlock * kGroupBytes; line += 64)
      _mm_prefetch(reinterpret_cast<const char*>(weights) + kPrefetchedBytes + line, _MM_HINT_T0);
    const Words left = load_words(weights), right = load_words(weights + kLanes * kGroupBytes);
    for (int row = 0; row < rows; ++row) {
      low[row] = Format::add(low[row], left, of[row][group]);
      high[row] = Format::add(high[row], right, of[row][group]);
    }
  }
  for (int row = 0; row < rows; ++row) sums.low[row] = low[row], sums.high[row] = high[row];
}

template <class Format, int most = Format::kRows>
void multiply_rows(int64_t rows, const uint8_t* weights, int64_t groups, const Inputs& inputs, int64_t first,
                   Sums<Format>& sums) {
  if constexpr (most > 1)
    if (rows < most) return multiply_rows<Format, most - 1>(rows, weights, groups, inputs, first, sums);
  multiply_block<Format, most>(weights, groups, inputs, first, sums);
}

// My share of the outputs, of all rows; `give(row, output, low, high)` gets a block at a time, from `output`
// on.
template <class Format, class Give>
void multiply(const Worker& worker, const Product& product, const Inputs& inputs, int64_t rows, Give give) {
  const int64_t groups = product.inputs / Format::kInputs;
  const auto share = worker.of(product.outputs / kBlock);
  Sums<Format> sums;
  for (int64_t block = share.begin; block < share.end; ++block) {
    const uint8_t* weights = product.weights + block * groups * kBlock * kGroupBytes;
    const int64_t output = block * kBlock;
    for (int64_t first = 0, few; first < rows; first += few) {
      const int64_t left = rows - first, passes = (left + Format::kRows - 1) / Format::kRows;
      few = (left + passes - 1) / passes;
      multiply_rows<Format>(few, weights, groups, inputs, first, sums);
      for (int64_t i = 0; i < few; ++i) {
        const float scale = inputs.scales[first + i];
        give(first + i, output, Format::value(sums.low[i], product, output, scale),
             Format::value(sums.high[i], product, output + kLanes, scale));
      }
    }
  }
}

}  // namespace
