// What Python calls: decoder layers, frames and the codec's activation on x86 processors, by as many threads
// as it says. It is compiled for AVX2 and again for AVX-512; `library.py` mirrors the structures.

#include "frame.h"

extern "C" {

// [positions, channels] of float32 or bfloat16; channels: a multiple of the lanes.
struct Snake {
  const float* alpha;         // [channels]
  const float* inverse_beta;  // [channels]
  int64_t channels;
};

enum Number { kFloat32, kBfloat16 };
}

namespace {

constexpr int64_t kAlone = 1 << 14;  // elements; fewer are done before a second thread has woken up

// Calls `act` with a tag for the format of the layers and one for that of everything else.
template <class Type>
struct Tag {
  using Is = Type;
};
template <class Do>
void with_formats(int number, const Decoder& decoder, Do act) {
  const bool is_int8 = decoder.layers[0].qkv.scales != nullptr;
  if (number == kFloat32)
    is_int8 ? act(Tag<Int8>(), Tag<float>()) : act(Tag<Float32>(), Tag<float>());
  else
    is_int8 ? act(Tag<Int8>(), Tag<uint16_t>()) : act(Tag<Bfloat16>(), Tag<uint16_t>());
}

int64_t width_of(const FrameModel& model) { return std::max(model.hidden, widest(model.predictor)); }

// A worker's memory in a frame.
struct FrameWorkerMemory {
  WorkerMemory pass;
  Candidates candidates;

  FrameWorkerMemory(const FrameModel& model, int64_t slots, int64_t capacity, Scratch& scratch)
      : pass(2 * slots, width_of(model), capacity, scratch),
        candidates(std::max(model.first_vocab, model.vocab), scratch) {}
};

// Of the memory that `take` takes.
template <class Take>
int64_t bytes_of(Take take) {
  Scratch scratch(nullptr);
  take(scratch);
  return scratch.bytes();
}

template <class NumberType>
void snake(const Snake& snake, const NumberType* from, NumberType* to, int64_t positions, int64_t threads) {
#pragma omp parallel for num_threads(static_cast<int>(threads)) if (positions * snake.channels > kAlone)
  for (int64_t position = 0; position < positions; ++position)
    for (int64_t channel = 0; channel < snake.channels; channel += kLanes) {
      const int64_t i = position * snake.channels + channel;
      const Floats x = load(from + i), wave = squared_sine(x * load(snake.alpha + channel));
      store(to + i, fma(wave, load(snake.inverse_beta + channel), x));
    }
}

}  // namespace

extern "C" {

// The order in which weights are to lie: see `Product`.
int64_t lanes() { return kLanes; }

int64_t layers_scratch_bytes(const Decoder* decoder, int64_t rows, int64_t capacity, int64_t threads) {
  return bytes_of([&](Scratch& s) { PassMemory(*decoder, rows, s); }) +
         threads * bytes_of([&](Scratch& s) { WorkerMemory(rows, widest(*decoder), capacity, s); });
}

// inputs, outputs: [R, hidden].
void run_layers(const Decoder* decoder, int number, const Rows* rows, const void* inputs, void* outputs,
                const Cache* cache, uint8_t* memory, int64_t threads) {
  Scratch shared(memory);
  const PassMemory pass(*decoder, rows->count, shared);
  const int64_t own_bytes =
      bytes_of([&](Scratch& s) { WorkerMemory(rows->count, widest(*decoder), cache->capacity, s); });
  with_formats(number, *decoder, [&](auto format, auto of_number) {
    using Format = typename decltype(format)::Is;
    using Value = typename decltype(of_number)::Is;
    together(threads, [&](const Worker& worker) {
      Scratch scratch(memory + shared.bytes() + worker.index * own_bytes);
      const WorkerMemory own(rows->count, widest(*decoder), cache->capacity, scratch);
      const int64_t hidden = decoder->hidden;
      worker.each_of(rows->count, [&](int64_t row) {
        convert(static_cast<const Value*>(inputs) + row * hidden, hidden, pass.stream + row * hidden);
      });
      Pass<Format, Value>(worker, *decoder, *rows, *cache, pass, own).run();
      worker.each_of(rows->count, [&](int64_t row) {
        convert_back(pass.stream + row * hidden, hidden, static_cast<Value*>(outputs) + row * hidden);
      });
    });
  });
}

int64_t frame_scratch_bytes(const FrameModel* model, int64_t slots, int64_t capacity, int64_t threads) {
  return bytes_of([&](Scratch& s) { FrameMemory(*model, slots, s); }) +
         threads * bytes_of([&](Scratch& s) { FrameWorkerMemory(*model, slots, capacity, s); });
}

void speak_frame(const FrameModel* model, int number, const Slots* slots, const Beats* beats, int64_t most,
                 const Cache* cache, uint8_t* memory, int64_t threads) {
  Scratch shared(memory);
  const FrameMemory frame(*model, slots->count, shared);
  const int64_t own_bytes =
      bytes_of([&](Scratch& s) { FrameWorkerMemory(*model, slots->count, cache->capacity, s); });
  with_formats(number, model->predictor, [&](auto format, auto of_number) {
    using Format = typename decltype(format)::Is;
    using Value = typename decltype(of_number)::Is;
    together(threads, [&](const Worker& worker) {
      Scratch scratch(memory + shared.bytes() + worker.index * own_bytes);
      const FrameWorkerMemory own(*model, slots->count, cache->capacity, scratch);
      Frame<Format, Value>(worker, *model, *slots, *beats, most, *cache, frame, own.pass, own.candidates)
          .speak();
    });
  });
}

void snake_float32(const Snake* of, const float* from, float* to, int64_t positions, int64_t threads) {
  snake(*of, from, to, positions, threads);
}

void snake_bfloat16(const Snake* of, const uint16_t* from, uint16_t* to, int64_t positions, int64_t threads) {
  snake(*of, from, to, positions, threads);
}
}
