// A stack of Qwen3 decoder layers over cached keys and values, for x86 processors with AVX-512.
//
// At a handful of rows a layer is the time its weights take to arrive from memory, plus whatever is done
// between two products. So the threads stay together for a whole pass, weights lie in the order they are read
// in, and everything between two products happens in registers or in a core's own cache.
//
// Weights are bfloat16, or int8 with one scale per output; what goes into a product is rounded to the same.
// Sums, norms, attention and the residual stream are float32. Nothing a row computes depends on other rows.
//
// Source of the arithmetic: modeling_qwen3_tts.py of qwen-tts 0.1.1 (Qwen3TTSTalkerDecoderLayer).
//
// At the end the codec's Snake, whose five operators would pass over all of a chunk five times.

#include <immintrin.h>
#include <omp.h>
#include <sched.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <initializer_list>

extern "C" {

// Weights in groups of 4 bytes along the inputs (2 bfloat16, 4 int8), the groups of 32 outputs side by side:
// [outputs / 32][inputs · width / 4][32][4 / width].
struct Product {
  const uint8_t* weights;
  const float* scales;      // [outputs] of int8, else null
  const int32_t* offsets;   // [outputs] of int8: 128 times the sum of an output's weights
  int64_t outputs, inputs;  // multiples of 32
};

struct Layer {
  const float* attention_norm;     // [hidden]
  const float* head_norm;          // [heads + kv_heads, head_size]
  const float* feed_forward_norm;  // [hidden]
  Product qkv, out;
  Product gate_up;  // 16 gates, then the 16 outputs they are for, and so on
  Product down;
};

struct Decoder {
  const Layer* layers;
  const float* norm;   // [hidden]
  const float* turns;  // [positions][cosines of head_size / 2, sines of head_size / 2]
  int64_t num_layers, hidden, heads, kv_heads, head_size, feed_forward;
  float eps;
};

// R rows, those of a slot next to each other and in ascending positions.
struct Rows {
  int64_t count;
  const uint16_t* inputs;    // bfloat16 [R, hidden]
  uint16_t* outputs;         // bfloat16 [R, hidden], after the last norm
  const int64_t* slots;      // [R]
  const int64_t* positions;  // [R]
};

// bfloat16 [slots, kv_heads, capacity, head_size] of every layer.
struct Cache {
  uint16_t* const* keys;
  uint16_t* const* values;
  int64_t capacity;
};

int runs_here();
int64_t scratch_bytes(const Decoder*, int64_t rows, int64_t capacity, int64_t threads);
void decode(const Decoder*, const Rows*, const Cache*, uint8_t* scratch, int64_t threads);

// [positions, channels] of float32, or of bfloat16; channels: a multiple of 16.
struct Snake {
  const float* alpha;         // [channels]
  const float* inverse_beta;  // [channels]
  int64_t channels;
};

void snake_float32(const Snake*, const float* from, float* to, int64_t positions, int64_t threads);
void snake_bfloat16(const Snake*, const uint16_t* from, uint16_t* to, int64_t positions, int64_t threads);
}

namespace {

constexpr int64_t kLanes = 16;         // floats in a register
constexpr int64_t kBlock = 32;         // outputs whose weights lie side by side
constexpr int64_t kGroup = 4;          // bytes of an output's weights that lie side by side
constexpr int64_t kShared = 8;         // rows that share one reading of a block; their sums fill 16 registers
constexpr int64_t kAhead = 32 * 128;  // bytes
constexpr int kSpins = 1000;         // some 20 microseconds
constexpr int64_t kAlone = 1 << 14;  // elements that one thread bends before a second one has woken up

// --- numbers ---------------------------------------------------------------------------------------------

__m512 widen(const uint16_t* x) {
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

__m512 widen(const float* x) { return _mm512_loadu_ps(x); }

void narrow(float* to, __m512 x) { _mm512_storeu_ps(to, x); }

void narrow(uint16_t* to, __m512 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(x));
}

// e^x within 2 units in the last place: 2^n · e^r, |r| <= ln 2 / 2, with the Taylor polynomial of e^r.
__m512 exponential(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-104), x);  // e^-104 is 0, and -infinity minus itself is no number
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 sum = _mm512_set1_ps(1.0f / 5040);
  for (const float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(term));
  return _mm512_scalef_ps(sum, n);
}

// sin²(x) within 2e-7 for |x| < 10,000: of the r = x - n·pi with |r| <= pi / 2, with the Taylor polynomial.
__m512 squared_sine(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.318309886f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(3.140625f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(9.67653589793e-4f), r);
  const __m512 square = _mm512_mul_ps(r, r);
  __m512 sum = _mm512_set1_ps(1.0f / 6227020800);
  for (const float term : {-1.0f / 39916800, 1.0f / 362880, -1.0f / 5040, 1.0f / 120, -1.0f / 6, 1.0f})
    sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(term));
  const __m512 sine = _mm512_mul_ps(sum, r);
  return _mm512_mul_ps(sine, sine);
}

__m512 silu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(x, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

float inverse_rms(const float* x, int64_t size, float eps) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < size; i += kLanes) {
    const __m512 value = _mm512_loadu_ps(x + i);
    sum = _mm512_fmadd_ps(value, value, sum);
  }
  return 1.0f / __builtin_sqrtf(_mm512_reduce_add_ps(sum) / size + eps);
}

// Where threads wait for each other. Their shares are equal and the waits of microseconds, in which sleeping
// would cost more than it saves; who waits longer shares a core with somebody else, and lets them go first.
class Meeting {
 public:
  void wait() {
    const int round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == omp_get_num_threads()) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins)
      spins < kSpins ? _mm_pause() : static_cast<void>(sched_yield());
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> round_{0};
};

// --- products --------------------------------------------------------------------------------------------

// What a product reads its rows as, and how it adds up 4 bytes of weights times 4 bytes of a row.
struct Bfloat16 {
  using Sum = __m512;
  static constexpr int64_t kBytes = 2;

  static Sum add(Sum sum, __m512i weights, __m512i inputs) {
    return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)inputs);
  }
  static float round(const float* x, int64_t size, uint8_t* rounded) {
    for (int64_t i = 0; i < size; i += kLanes)
      narrow(reinterpret_cast<uint16_t*>(rounded) + i, _mm512_loadu_ps(x + i));
    return 1.0f;
  }
  static __m512 value(Sum sum, const Product&, int64_t, float) { return sum; }
};

// The processor multiplies unsigned by signed bytes: rows are shifted by 128, which the offsets take back.
struct Int8 {
  using Sum = __m512i;
  static constexpr int64_t kBytes = 1;

  static Sum add(Sum sum, __m512i weights, __m512i inputs) {
    return _mm512_dpbusd_epi32(sum, inputs, weights);
  }
  static float round(const float* x, int64_t size, uint8_t* rounded) {
    __m512 most = _mm512_set1_ps(1e-30f);
    for (int64_t i = 0; i < size; i += kLanes)
      most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(x + i)));
    const float scale = _mm512_reduce_max_ps(most) / 127;
    const __m512 factor = _mm512_set1_ps(1 / scale);
    for (int64_t i = 0; i < size; i += kLanes) {
      const __m512i level = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), factor));
      const __m512i shifted = _mm512_add_epi32(level, _mm512_set1_epi32(128));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(rounded + i), _mm512_cvtepi32_epi8(shifted));
    }
    return scale;
  }
  static __m512 value(Sum sum, const Product& product, int64_t output, float row_scale) {
    const __m512i exact = _mm512_sub_epi32(sum, _mm512_loadu_si512(product.offsets + output));
    const __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(product.scales + output), _mm512_set1_ps(row_scale));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(exact), scale);
  }
};

// Rows as a product reads them; every thread rounds its own, which is cheaper than waiting for another's.
struct Rounded {
  uint8_t* rows;
  float* scales;
  int64_t stride;  // bytes

  template <class Format>
  void take(int64_t row, const float* x, int64_t size) {
    scales[row] = Format::round(x, size, rows + row * stride);
  }
};

// One block's outputs of a few rows: weights are read once, in order.
template <class Format, int rows>
void multiply(const uint8_t* weights, const uint8_t* inputs, int64_t stride, int64_t groups,
              typename Format::Sum (&sums)[kShared][2]) {
  typename Format::Sum low[rows] = {}, high[rows] = {};
  for (int64_t group = 0; group < groups; ++group, weights += kBlock * kGroup, inputs += kGroup) {
    _mm_prefetch(reinterpret_cast<const char*>(weights) + kAhead, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(weights) + kAhead + 64, _MM_HINT_T0);
    const __m512i first = _mm512_loadu_si512(weights), second = _mm512_loadu_si512(weights + 64);
    for (int row = 0; row < rows; ++row) {
      int32_t bytes;
      std::memcpy(&bytes, inputs + row * stride, sizeof bytes);
      const __m512i input = _mm512_set1_epi32(bytes);
      low[row] = Format::add(low[row], first, input);
      high[row] = Format::add(high[row], second, input);
    }
  }
  for (int row = 0; row < rows; ++row) sums[row][0] = low[row], sums[row][1] = high[row];
}

template <class Format>
void multiply(int64_t rows, const uint8_t* weights, const uint8_t* inputs, int64_t stride, int64_t groups,
              typename Format::Sum (&sums)[kShared][2]) {
  switch (rows) {
    case 1: return multiply<Format, 1>(weights, inputs, stride, groups, sums);
    case 2: return multiply<Format, 2>(weights, inputs, stride, groups, sums);
    case 3: return multiply<Format, 3>(weights, inputs, stride, groups, sums);
    case 4: return multiply<Format, 4>(weights, inputs, stride, groups, sums);
    case 5: return multiply<Format, 5>(weights, inputs, stride, groups, sums);
    case 6: return multiply<Format, 6>(weights, inputs, stride, groups, sums);
    case 7: return multiply<Format, 7>(weights, inputs, stride, groups, sums);
    default: return multiply<Format, 8>(weights, inputs, stride, groups, sums);
  }
}

// A thread's share of the blocks, for all rows; `give(row, block, low, high)` gets 2 · 16 outputs at a time.
template <class Format, class Give>
void multiply_share(const Product& product, const Rounded& inputs, int64_t rows, Give give) {
  const int64_t blocks = product.outputs / kBlock, groups = product.inputs * Format::kBytes / kGroup;
  const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
  typename Format::Sum sums[kShared][2];
  for (int64_t block = blocks * thread / threads; block < blocks * (thread + 1) / threads; ++block) {
    const uint8_t* weights = product.weights + block * groups * kBlock * kGroup;
    for (int64_t first = 0; first < rows; first += kShared) {
      const int64_t few = rows - first < kShared ? rows - first : kShared;
      multiply<Format>(few, weights, inputs.rows + first * inputs.stride, inputs.stride, groups, sums);
      for (int64_t i = 0; i < few; ++i) {
        const float scale = inputs.scales[first + i];
        give(first + i, block, Format::value(sums[i][0], product, block * kBlock, scale),
             Format::value(sums[i][1], product, block * kBlock + kLanes, scale));
      }
    }
  }
}

// --- attention -------------------------------------------------------------------------------------------

// RMSNorm of one head, then the rotary embedding of its position.
void normalise_and_turn(float* head, int64_t size, const float* weight, const float* turns, float eps) {
  const int64_t half = size / 2;
  const __m512 scale = _mm512_set1_ps(inverse_rms(head, size, eps));
  for (int64_t i = 0; i < half; i += kLanes) {
    const __m512 cosine = _mm512_loadu_ps(turns + i), sine = _mm512_loadu_ps(turns + half + i);
    const __m512 first = _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(head + i), scale),
                                       _mm512_loadu_ps(weight + i));
    const __m512 second = _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(head + half + i), scale),
                                        _mm512_loadu_ps(weight + half + i));
    _mm512_storeu_ps(head + i, _mm512_fmsub_ps(first, cosine, _mm512_mul_ps(second, sine)));
    _mm512_storeu_ps(head + half + i, _mm512_fmadd_ps(second, cosine, _mm512_mul_ps(first, sine)));
  }
}

void write(uint16_t* place, const float* head, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes) narrow(place + i, _mm512_loadu_ps(head + i));
}

// One query head over the first `length` positions of its key head. `weights` has room for length + 16.
void attend(const float* query, const uint16_t* keys, const uint16_t* values, int64_t length, int64_t size,
            float* weights, float* mixed) {
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(size));
  for (int64_t position = 0; position < length; ++position) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += kLanes)
      sum = _mm512_fmadd_ps(_mm512_loadu_ps(query + i), widen(keys + position * size + i), sum);
    weights[position] = scale * _mm512_reduce_add_ps(sum);
  }
  _mm512_storeu_ps(weights + length, _mm512_set1_ps(-__builtin_inff()));
  __m512 most = _mm512_set1_ps(-__builtin_inff());
  for (int64_t i = 0; i < length; i += kLanes) most = _mm512_max_ps(most, _mm512_loadu_ps(weights + i));
  most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
  __m512 total = _mm512_setzero_ps();
  for (int64_t i = 0; i < length; i += kLanes) {
    const __m512 weight = exponential(_mm512_sub_ps(_mm512_loadu_ps(weights + i), most));
    total = _mm512_add_ps(total, weight);
    _mm512_storeu_ps(weights + i, weight);
  }
  const __m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
  for (int64_t i = 0; i < size; i += 2 * kLanes) {
    __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
    for (int64_t position = 0; position < length; ++position) {
      const __m512 weight = _mm512_set1_ps(weights[position]);
      low = _mm512_fmadd_ps(weight, widen(values + position * size + i), low);
      high = _mm512_fmadd_ps(weight, widen(values + position * size + i + kLanes), high);
    }
    _mm512_storeu_ps(mixed + i, _mm512_mul_ps(low, share));
    _mm512_storeu_ps(mixed + i + kLanes, _mm512_mul_ps(high, share));
  }
}

// --- a pass ----------------------------------------------------------------------------------------------

int64_t qkv_size(const Decoder& d) { return (d.heads + 2 * d.kv_heads) * d.head_size; }

int64_t widest(const Decoder& d) {
  const int64_t joined = d.heads * d.head_size, wide = joined > d.hidden ? joined : d.hidden;
  return wide > d.feed_forward ? wide : d.feed_forward;
}

int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// What a pass needs besides its inputs: some for everybody, some for each thread.
struct Scratch {
  float* stream;  // [R, hidden]
  float* heads;   // [R, qkv]
  float* wide;    // [R, widest]: what the heads found, or the feed-forward's middle
  uint8_t* own;

  static int64_t shared_bytes(const Decoder& d, int64_t rows) {
    return whole_lines(rows * (d.hidden + qkv_size(d) + widest(d)) * sizeof(float));
  }
  static int64_t rounded_bytes(const Decoder& d, int64_t rows) {
    return whole_lines(rows * widest(d) * Bfloat16::kBytes);
  }
  static int64_t scale_bytes(int64_t rows) { return whole_lines(rows * sizeof(float)); }
  static int64_t own_bytes(const Decoder& d, int64_t rows, int64_t capacity) {
    return rounded_bytes(d, rows) + scale_bytes(rows) +
           whole_lines((d.hidden + capacity + kLanes) * sizeof(float));
  }
};

// One thread's way through a pass.
template <class Format>
class Pass {
 public:
  Pass(const Decoder& decoder, const Rows& rows, const Cache& cache, uint8_t* memory, Meeting& meeting)
      : d(decoder), rows(rows), cache(cache), meeting(meeting) {
    scratch.stream = reinterpret_cast<float*>(memory);
    scratch.heads = scratch.stream + rows.count * d.hidden;
    scratch.wide = scratch.heads + rows.count * qkv_size(d);
    scratch.own = memory + Scratch::shared_bytes(d, rows.count) +
                  omp_get_thread_num() * Scratch::own_bytes(d, rows.count, cache.capacity);
    rounded.stride = widest(d) * Format::kBytes;
    rounded.rows = scratch.own;
    uint8_t* rest = scratch.own + Scratch::rounded_bytes(d, rows.count);
    rounded.scales = reinterpret_cast<float*>(rest);
    floats = reinterpret_cast<float*>(rest + Scratch::scale_bytes(rows.count));
  }

  void run() {
    each_of_my_rows([this](int64_t row) { read(row); });
    for (int64_t layer = 0; layer < d.num_layers; ++layer) {
      meeting.wait();
      project(d.layers[layer]);
      meeting.wait();
      attend_to_cache(d.layers[layer], cache.keys[layer], cache.values[layer]);
      meeting.wait();
      join(d.layers[layer]);
      meeting.wait();
      expand(d.layers[layer]);
      meeting.wait();
      contract(d.layers[layer]);
    }
    meeting.wait();
    each_of_my_rows([this](int64_t row) { tell(row); });
  }

 private:
  const Decoder& d;
  const Rows& rows;
  const Cache& cache;
  Meeting& meeting;
  Scratch scratch;
  Rounded rounded;
  float* floats;  // a normalised row, and after it attention weights

  template <class Do>
  void each_of_my_rows(Do act) {
    for (int64_t row = omp_get_thread_num(); row < rows.count; row += omp_get_num_threads()) act(row);
  }

  float* stream(int64_t row) { return scratch.stream + row * d.hidden; }
  float* heads(int64_t row) { return scratch.heads + row * qkv_size(d); }
  float* wide(int64_t row) { return scratch.wide + row * widest(d); }

  void read(int64_t row) {
    for (int64_t i = 0; i < d.hidden; i += kLanes)
      _mm512_storeu_ps(stream(row) + i, widen(rows.inputs + row * d.hidden + i));
  }

  void tell(int64_t row) {
    normalise(row, d.norm);
    write(rows.outputs + row * d.hidden, floats, d.hidden);
  }

  void project(const Layer& layer) {
    take_normalised(layer.attention_norm);
    multiply_share<Format>(layer.qkv, rounded, rows.count,
                           [this](int64_t row, int64_t block, __m512 low, __m512 high) {
                             _mm512_storeu_ps(heads(row) + block * kBlock, low);
                             _mm512_storeu_ps(heads(row) + block * kBlock + kLanes, high);
                           });
  }

  // A thread takes a key head of a slot with all its rows: nobody waits for another's keys.
  void attend_to_cache(const Layer& layer, uint16_t* keys, uint16_t* values) {
    int64_t share = 0;
    for (int64_t first = 0, end; first < rows.count; first = end) {
      for (end = first + 1; end < rows.count && rows.slots[end] == rows.slots[first];) ++end;
      for (int64_t head = 0; head < d.kv_heads; ++head, ++share) {
        if (share % omp_get_num_threads() != omp_get_thread_num()) continue;
        const int64_t place = (rows.slots[first] * d.kv_heads + head) * cache.capacity * d.head_size;
        for (int64_t row = first; row < end; ++row) remember(layer, row, head, keys + place, values + place);
        for (int64_t row = first; row < end; ++row) look_back(layer, row, head, keys + place, values + place);
      }
    }
  }

  void remember(const Layer& layer, int64_t row, int64_t head, uint16_t* keys, uint16_t* values) {
    float* key = heads(row) + (d.heads + head) * d.head_size;
    const float* value = key + d.kv_heads * d.head_size;
    const int64_t place = rows.positions[row] * d.head_size;
    turn(layer, row, d.heads + head);
    write(keys + place, key, d.head_size);
    write(values + place, value, d.head_size);
  }

  void look_back(const Layer& layer, int64_t row, int64_t kv_head, const uint16_t* keys, const uint16_t* values) {
    const int64_t group = d.heads / d.kv_heads;
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      turn(layer, row, head);
      attend(heads(row) + head * d.head_size, keys, values, rows.positions[row] + 1, d.head_size,
             floats + d.hidden, wide(row) + head * d.head_size);
    }
  }

  void turn(const Layer& layer, int64_t row, int64_t head) {
    normalise_and_turn(heads(row) + head * d.head_size, d.head_size, layer.head_norm + head * d.head_size,
                       d.turns + rows.positions[row] * d.head_size, d.eps);
  }

  void join(const Layer& layer) {
    take_wide(d.heads * d.head_size);
    add_to_stream(layer.out);
  }

  void expand(const Layer& layer) {
    take_normalised(layer.feed_forward_norm);
    multiply_share<Format>(layer.gate_up, rounded, rows.count,
                           [this](int64_t row, int64_t block, __m512 gate, __m512 up) {
                             _mm512_storeu_ps(wide(row) + block * kLanes, _mm512_mul_ps(silu(gate), up));
                           });
  }

  void contract(const Layer& layer) {
    take_wide(d.feed_forward);
    add_to_stream(layer.down);
  }

  void take_normalised(const float* weight) {
    for (int64_t row = 0; row < rows.count; ++row) {
      normalise(row, weight);
      rounded.take<Format>(row, floats, d.hidden);
    }
  }

  void take_wide(int64_t size) {
    for (int64_t row = 0; row < rows.count; ++row) rounded.take<Format>(row, wide(row), size);
  }

  void normalise(int64_t row, const float* weight) {
    const __m512 scale = _mm512_set1_ps(inverse_rms(stream(row), d.hidden, d.eps));
    for (int64_t i = 0; i < d.hidden; i += kLanes) {
      const __m512 value = _mm512_mul_ps(_mm512_loadu_ps(stream(row) + i), scale);
      _mm512_storeu_ps(floats + i, _mm512_mul_ps(value, _mm512_loadu_ps(weight + i)));
    }
  }

  void add_to_stream(const Product& product) {
    multiply_share<Format>(product, rounded, rows.count,
                           [this](int64_t row, int64_t block, __m512 low, __m512 high) {
                             float* place = stream(row) + block * kBlock;
                             _mm512_storeu_ps(place, _mm512_add_ps(_mm512_loadu_ps(place), low));
                             place += kLanes;
                             _mm512_storeu_ps(place, _mm512_add_ps(_mm512_loadu_ps(place), high));
                           });
  }
};

// --- the codec's Snake -----------------------------------------------------------------------------------

// x + sin²(alpha · x) / beta
template <typename Number>
void bend(const Snake& snake, const Number* from, Number* to, int64_t positions, int64_t threads) {
#pragma omp parallel for num_threads(static_cast<int>(threads)) if (positions * snake.channels > kAlone)
  for (int64_t position = 0; position < positions; ++position)
    for (int64_t channel = 0; channel < snake.channels; channel += kLanes) {
      const int64_t i = position * snake.channels + channel;
      const __m512 x = widen(from + i);
      const __m512 wave = squared_sine(_mm512_mul_ps(x, _mm512_loadu_ps(snake.alpha + channel)));
      narrow(to + i, _mm512_fmadd_ps(wave, _mm512_loadu_ps(snake.inverse_beta + channel), x));
    }
}

}  // namespace

int runs_here() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}

int64_t scratch_bytes(const Decoder* decoder, int64_t rows, int64_t capacity, int64_t threads) {
  return Scratch::shared_bytes(*decoder, rows) + threads * Scratch::own_bytes(*decoder, rows, capacity);
}

void decode(const Decoder* decoder, const Rows* rows, const Cache* cache, uint8_t* scratch, int64_t threads) {
  const bool is_int8 = decoder->layers[0].qkv.scales != nullptr;
  Meeting meeting;
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    if (is_int8)
      Pass<Int8>(*decoder, *rows, *cache, scratch, meeting).run();
    else
      Pass<Bfloat16>(*decoder, *rows, *cache, scratch, meeting).run();
  }
}

void snake_float32(const Snake* snake, const float* from, float* to, int64_t positions, int64_t threads) {
  bend(*snake, from, to, positions, threads);
}

void snake_bfloat16(const Snake* snake, const uint16_t* from, uint16_t* to, int64_t positions, int64_t threads) {
  bend(*snake, from, to, positions, threads);
}
