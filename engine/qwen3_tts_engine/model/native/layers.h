// Stacks of Qwen3 decoder layers over cached keys and values.
//
// Source of the arithmetic: modeling_qwen3_tts.py of qwen-tts 0.1.1 (Qwen3TTSTalkerDecoderLayer).

#pragma once

#include "products.h"

extern "C" {

struct Layer {
  const float* attention_norm;     // [hidden]
  const float* head_norm;          // [heads + kv_heads, head_size]
  const float* feed_forward_norm;  // [hidden]
  Product qkv, out;
  Product gate_up;  // a register of gates, then one of the outputs they are for, and so on
  Product down;
};

struct Decoder {
  const Layer* layers;
  const float* norm;        // [hidden]
  const float* rope_table;  // [positions][cosines of head_size / 2, sines of head_size / 2]
  int64_t num_layers, hidden, heads, kv_heads, head_size, feed_forward;
  float eps;
};

// Keys and values of every layer, [slots, kv_heads, capacity, head_size] each.
struct Cache {
  void* const* keys;
  void* const* values;
  int64_t capacity;
};

// Where R rows are: those of a slot next to each other and in ascending positions.
struct Rows {
  int64_t count;
  const int64_t* slots;      // [R]
  const int64_t* positions;  // [R]
};
}

namespace {

// RMSNorm's factor.
inline float inverse_rms(const float* x, int64_t size, float eps) {
  Floats squares = zeros();
  for (int64_t i = 0; i < size; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
  return 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(size) + eps);
}

inline void rms_norm(const float* x, const float* weight, int64_t size, float eps, float* normed) {
  const float scale = inverse_rms(x, size, eps);
  for (int64_t i = 0; i < size; ++i) normed[i] = x[i] * scale * weight[i];
}

// The rotary embedding of one head at one position.
inline void rotate(float* head, int64_t size, const float* cosines, const float* sines) {
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float first = head[i], second = head[half + i];
    head[i] = first * cosines[i] - second * sines[i];
    head[half + i] = second * cosines[i] + first * sines[i];
  }
}

template <class Number>
void convert(const Number* from, int64_t size, float* to) {
  for (int64_t i = 0; i < size; i += kLanes) store(to + i, load(from + i));
}

template <class Number>
void convert_back(const float* from, int64_t size, Number* to) {
  for (int64_t i = 0; i < size; i += kLanes) store(to + i, load(from + i));
}

// --- attention -------------------------------------------------------------------------------------------

// Turns `length` scores into the weights they give; there is room for `length` + kLanes.
inline void softmax(float* scores, int64_t length) {
  store(scores + length, spread(-__builtin_inff()));
  Floats most = spread(-__builtin_inff());
  for (int64_t i = 0; i < length; i += kLanes) most = larger(most, load(scores + i));
  const Floats top = spread(largest(most));
  Floats total = zeros();
  for (int64_t i = 0; i < length; i += kLanes) {
    const Floats weight = exponential(load(scores + i) - top);
    total = total + weight;
    store(scores + i, weight);
  }
  const Floats share = spread(1.0f / sum(total));
  for (int64_t i = 0; i < length; i += kLanes) store(scores + i, load(scores + i) * share);
}

// So many registers of the mixture of values.
template <int registers, class Number>
void mix(const float* weights, const Number* values, int64_t length, int64_t size, float* mixed) {
  Floats sums[registers] = {};
  for (int64_t position = 0; position < length; ++position)
    for (int i = 0; i < registers; ++i)
      sums[i] = fma(spread(weights[position]), load(values + position * size + i * kLanes), sums[i]);
  for (int i = 0; i < registers; ++i) store(mixed + i * kLanes, sums[i]);
}

// One query head over the first `length` positions of its key head.
template <class Number>
void attend(const float* query, const Number* keys, const Number* values, int64_t length, int64_t size,
            float* scores, float* mixed) {
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(size));
  for (int64_t position = 0; position < length; ++position) {
    Floats product = zeros();
    for (int64_t i = 0; i < size; i += kLanes)
      product = fma(load(query + i), load(keys + position * size + i), product);
    scores[position] = scale * sum(product);
  }
  softmax(scores, length);
  constexpr int64_t kWide = 4 * kLanes;
  int64_t i = 0;
  for (; i + kWide <= size; i += kWide) mix<4>(scores, values + i, length, size, mixed + i);
  for (; i < size; i += kLanes) mix<1>(scores, values + i, length, size, mixed + i);
}

// --- a stack of layers -----------------------------------------------------------------------------------

inline int64_t qkv_size(const Decoder& d) { return (d.heads + 2 * d.kv_heads) * d.head_size; }

inline int64_t widest(const Decoder& d) {
  int64_t most = d.hidden;
  for (const int64_t size : {d.heads * d.head_size, d.feed_forward}) most = size > most ? size : most;
  return most;
}

inline int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Memory that a call is given: `take` hands out one piece after the other, and without memory only counts.
class Scratch {
 public:
  explicit Scratch(uint8_t* memory) : memory_(memory) {}
  template <class Value>
  Value* take(int64_t count) {
    Value* piece = reinterpret_cast<Value*>(memory_ + bytes_);
    bytes_ += whole_lines(count * sizeof(Value));
    return piece;
  }
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t* memory_;
  int64_t bytes_ = 0;
};

// What a pass of R rows through a stack needs besides the rows: some for everybody, some for each worker.
struct PassMemory {
  float* stream;  // [R, hidden]: the residual stream; the rows go in and come out here
  float* heads;   // [R, qkv]
  float* wide;    // [R, widest]: what the heads found, or the feed-forward's middle

  PassMemory(const Decoder& d, int64_t rows, Scratch& scratch)
      : stream(scratch.take<float>(rows * d.hidden)),
        heads(scratch.take<float>(rows * qkv_size(d))),
        wide(scratch.take<float>(rows * widest(d))) {}
};

struct WorkerMemory {
  Inputs inputs;  // [R, width]
  float* row;     // [width]
  float* scores;  // [capacity + kLanes]

  WorkerMemory(int64_t rows, int64_t width, int64_t capacity, Scratch& scratch)
      : inputs{scratch.take<uint8_t>(rows * Inputs::stride_of(width)), scratch.take<float>(rows),
               Inputs::stride_of(width)},
        row(scratch.take<float>(width)),
        scores(scratch.take<float>(capacity + kLanes)) {}
};

// One worker's way through the layers. Format: of the layers' weights; Number: of keys and values.
//
// At a handful of rows a layer is the time its weights take to arrive from memory, plus whatever is done
// between two products. So the workers stay together for all layers, and what is between two products happens
// in registers or in a core's own cache. Nothing a row computes depends on other rows.
template <class Format, class Number>
class Pass {
 public:
  Pass(const Worker& worker, const Decoder& decoder, const Rows& rows, const Cache& cache,
       const PassMemory& memory, const WorkerMemory& own)
      : worker(worker), d(decoder), rows(rows), cache(cache), memory(memory), own(own) {}

  // The rows of the residual stream through all layers and the last norm, in place.
  void run() {
    for (int64_t layer = 0; layer < d.num_layers; ++layer) {
      worker.meet();
      project(d.layers[layer]);
      worker.meet();
      attend_to_cache(d.layers[layer], static_cast<Number*>(cache.keys[layer]),
                      static_cast<Number*>(cache.values[layer]));
      worker.meet();
      take_wide(d.heads * d.head_size);
      add_to_stream(d.layers[layer].out);
      worker.meet();
      gate(d.layers[layer]);
      worker.meet();
      take_wide(d.feed_forward);
      add_to_stream(d.layers[layer].down);
    }
    worker.meet();
    worker.each_of(rows.count,
                   [this](int64_t row) { rms_norm(stream(row), d.norm, d.hidden, d.eps, stream(row)); });
  }

 private:
  const Worker& worker;
  const Decoder& d;
  const Rows& rows;
  const Cache& cache;
  const PassMemory& memory;
  WorkerMemory own;

  float* stream(int64_t row) { return memory.stream + row * d.hidden; }
  float* heads(int64_t row) { return memory.heads + row * qkv_size(d); }
  float* wide(int64_t row) { return memory.wide + row * widest(d); }

  void project(const Layer& layer) {
    take_normed(layer.attention_norm);
    multiply<Format>(worker, layer.qkv, own.inputs, rows.count,
                     [this](int64_t row, int64_t output, Floats low, Floats high) {
                       store(heads(row) + output, low);
                       store(heads(row) + output + kLanes, high);
                     });
  }

  // A worker takes a key head of a slot with all its rows: nobody waits for another's keys.
  void attend_to_cache(const Layer& layer, Number* keys, Number* values) {
    int64_t piece = 0;
    for (int64_t first = 0, end; first < rows.count; first = end) {
      for (end = first + 1; end < rows.count && rows.slots[end] == rows.slots[first];) ++end;
      for (int64_t head = 0; head < d.kv_heads; ++head, ++piece) {
        if (piece % worker.threads != worker.index) continue;
        const int64_t place = (rows.slots[first] * d.kv_heads + head) * cache.capacity * d.head_size;
        for (int64_t row = first; row < end; ++row) remember(layer, row, head, keys + place, values + place);
        for (int64_t row = first; row < end; ++row) look_back(layer, row, head, keys + place, values + place);
      }
    }
  }

  void remember(const Layer& layer, int64_t row, int64_t head, Number* keys, Number* values) {
    const float* key = turned(layer, row, d.heads + head);
    const int64_t place = rows.positions[row] * d.head_size;
    convert_back(key, d.head_size, keys + place);
    convert_back(key + d.kv_heads * d.head_size, d.head_size, values + place);
  }

  void look_back(const Layer& layer, int64_t row, int64_t kv_head, const Number* keys, const Number* values) {
    const int64_t group = d.heads / d.kv_heads;
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
      attend(turned(layer, row, head), keys, values, rows.positions[row] + 1, d.head_size, own.scores,
             wide(row) + head * d.head_size);
  }

  // A query or key head, normed and turned to its position in place.
  const float* turned(const Layer& layer, int64_t row, int64_t head) {
    float* values = heads(row) + head * d.head_size;
    const float* cosines = d.rope_table + rows.positions[row] * d.head_size;
    rms_norm(values, layer.head_norm + head * d.head_size, d.head_size, d.eps, values);
    rotate(values, d.head_size, cosines, cosines + d.head_size / 2);
    return values;
  }

  void gate(const Layer& layer) {
    take_normed(layer.feed_forward_norm);
    multiply<Format>(worker, layer.gate_up, own.inputs, rows.count,
                     [this](int64_t row, int64_t output, Floats gate, Floats up) {
                       store(wide(row) + output / 2, silu(gate) * up);
                     });
  }

  void take_normed(const float* weight) {
    for (int64_t row = 0; row < rows.count; ++row) {
      rms_norm(stream(row), weight, d.hidden, d.eps, own.row);
      own.inputs.take<Format>(row, own.row, d.hidden);
    }
  }

  void take_wide(int64_t size) {
    for (int64_t row = 0; row < rows.count; ++row) own.inputs.take<Format>(row, wide(row), size);
  }

  void add_to_stream(const Product& product) {
    multiply<Format>(worker, product, own.inputs, rows.count,
                     [this](int64_t row, int64_t output, Floats low, Floats high) {
                       float* place = stream(row) + output;
                       store(place, load(place) + low);
                       store(place + kLanes, load(place + kLanes) + high);
                     });
  }
};

}  // namespace
