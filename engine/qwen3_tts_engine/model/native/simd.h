// Vectors of float32 by the names that everything else uses, in AVX-512 where that is compiled for, else in
// AVX2.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace {

#if defined(__AVX512F__)

constexpr int64_t kLanes = 16;  // floats in a register
using Floats = __m512;
using Words = __m512i;  // 32 bits in each lane

inline Floats spread(float x) { return _mm512_set1_ps(x); }
inline Words spread(int32_t x) { return _mm512_set1_epi32(x); }
inline Floats load(const float* from) { return _mm512_loadu_ps(from); }
inline Words load_words(const void* from) { return _mm512_loadu_si512(from); }
inline void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats magnitude(Floats x) { return _mm512_abs_ps(x); }
inline Floats nearest_whole(Floats x) { return _mm512_roundscale_ps(x, 0); }
inline Words to_words(Floats x) { return _mm512_cvtps_epi32(x); }
inline Floats to_floats(Words x) { return _mm512_cvtepi32_ps(x); }
inline Floats as_floats(Words x) { return _mm512_castsi512_ps(x); }
inline Words plus(Words a, Words b) { return _mm512_add_epi32(a, b); }
inline Words minus(Words a, Words b) { return _mm512_sub_epi32(a, b); }
inline Words shift_left(Words x, int bits) { return _mm512_slli_epi32(x, bits); }
inline Words both(Words a, Words b) { return _mm512_and_si512(a, b); }
inline float sum(Floats x) { return _mm512_reduce_add_ps(x); }
inline float largest(Floats x) { return _mm512_reduce_max_ps(x); }

// bfloat16, the upper half of a float32.
inline Floats load(const uint16_t* from) {
  const Words bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return as_floats(shift_left(bits, 16));
}
inline void store(uint16_t* to, Floats x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(x));
}

#else

constexpr int64_t kLanes = 8;
using Floats = __m256;
using Words = __m256i;

inline Floats spread(float x) { return _mm256_set1_ps(x); }
inline Words spread(int32_t x) { return _mm256_set1_epi32(x); }
inline Floats load(const float* from) { return _mm256_loadu_ps(from); }
inline Words load_words(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store(float* to, Floats x) { _mm256_storeu_ps(to, x); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats magnitude(Floats x) { return _mm256_andnot_ps(spread(-0.0f), x); }
inline Floats nearest_whole(Floats x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Words to_words(Floats x) { return _mm256_cvtps_epi32(x); }
inline Floats to_floats(Words x) { return _mm256_cvtepi32_ps(x); }
inline Floats as_floats(Words x) { return _mm256_castsi256_ps(x); }
inline Words plus(Words a, Words b) { return _mm256_add_epi32(a, b); }
inline Words minus(Words a, Words b) { return _mm256_sub_epi32(a, b); }
inline Words shift_left(Words x, int bits) { return _mm256_slli_epi32(x, bits); }
inline Words both(Words a, Words b) { return _mm256_and_si256(a, b); }

inline __m128 halves(Floats x, __m128 (*join)(__m128, __m128)) {
  __m128 four = join(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  four = join(four, _mm_movehl_ps(four, four));
  return join(four, _mm_movehdup_ps(four));
}
inline float sum(Floats x) {
  return _mm_cvtss_f32(halves(x, [](__m128 a, __m128 b) { return _mm_add_ps(a, b); }));
}
inline float largest(Floats x) {
  return _mm_cvtss_f32(halves(x, [](__m128 a, __m128 b) { return _mm_max_ps(a, b); }));
}

inline Floats load(const uint16_t* from) {
  const Words bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return as_floats(shift_left(bits, 16));
}
// To the nearest, ties to even; what is no number stays none.
inline void store(uint16_t* to, Floats x) {
  const Words bits = _mm256_castps_si256(x);
  const Words is_odd = both(_mm256_srli_epi32(bits, 16), spread(1));
  const Words rounded = _mm256_srli_epi32(plus(bits, plus(is_odd, spread(0x7fff))), 16);
  const Words is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const Words halves = _mm256_blendv_epi8(rounded, spread(0x7fc0), is_nan);
  const Words packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(halves, halves), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}

#endif

inline Floats zeros() { return spread(0.0f); }

// e^x within 2 units in the last place, for x <= 88; below -87 it is e^-87, next to nothing. 2^n · e^r with
// |r| <= ln 2 / 2, and the Taylor polynomial of e^r.
inline Floats exponential(Floats x) {
  x = larger(spread(-87.0f), x);
  const Floats n = nearest_whole(x * spread(1.44269504f));
  Floats r = fma(n, spread(-0.693359375f), x);
  r = fma(n, spread(2.12194440e-4f), r);
  Floats sum = spread(1.0f / 5040);
  for (const float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    sum = fma(sum, r, spread(term));
  return sum * as_floats(shift_left(plus(to_words(n), spread(127)), 23));
}

// sin²(x) within 2e-7 for |x| < 10,000: of the r = x - n·pi with |r| <= pi / 2, with the Taylor polynomial.
inline Floats squared_sine(Floats x) {
  const Floats n = nearest_whole(x * spread(0.318309886f));
  Floats r = fma(n, spread(-3.140625f), x);
  r = fma(n, spread(-9.67653589793e-4f), r);
  const Floats square = r * r;
  Floats sum = spread(1.0f / 6227020800);
  for (const float term : {-1.0f / 39916800, 1.0f / 362880, -1.0f / 5040, 1.0f / 120, -1.0f / 6, 1.0f})
    sum = fma(sum, square, spread(term));
  const Floats sine = sum * r;
  return sine * sine;
}

inline Floats silu(Floats x) { return x / (spread(1.0f) + exponential(zeros() - x)); }

}  // namespace
