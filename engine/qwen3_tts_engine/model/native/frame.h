// A whole frame: from what the talker means to sixteen codes, and to what it hears of them.

#pragma once

#include "draw.h"

extern "C" {

// What makes frames. A Number is a float, or a bfloat16, whatever the weights are kept in.
struct FrameModel {
  Decoder predictor;
  Product first_head;            // hidden -> first_vocab
  const Product* heads;          // [codes - 1], the predictor's hidden -> vocab
  Product projection;            // hidden -> the predictor's hidden; without weights where they are the same
  const float* projection_bias;  // [the predictor's hidden]
  const void* embeddings;        // Number [first_vocab + (codes - 1) · vocab, hidden]
  const uint8_t* suppressed;     // bool [first_vocab]: control codes
  int64_t hidden, codes, first_vocab, vocab;
  int64_t eos, min_frames;  // no utterance ends before
};

// B slots, from the first on.
struct Slots {
  int64_t count;
  const void* hidden;         // Number [B, hidden]: what the talker means
  void* next_input;           // Number [B, hidden]: what it hears next
  const void* text_table;     // Number [text vocab, hidden]
  const int64_t* text;        // [B]: the text token that joins the frame
  const int64_t* num_frames;  // [B]: spoken before this one
  uint8_t* spoken;            // bool [B, first_vocab]: the first codes of earlier frames
  const float* penalty;       // [B]: on those
  Rules first, rest;
  const float* noise;  // [B, first_vocab + (codes - 1) · vocab], unit exponential
  int64_t* codes;      // [B, codes]
};
}

namespace {

template <class Number>
struct ExactFormat;
template <>
struct ExactFormat<float> {
  using Is = Float32;
};
template <>
struct ExactFormat<uint16_t> {
  using Is = Bfloat16;
};

// Where the predictor is in a frame: it begins with two positions of every slot, and goes on with one.
struct Beats {
  const int64_t *slots, *pairs;  // [S], [2 S]: 0, 1, 2 … and 0, 0, 1, 1 …
  const int64_t* positions;      // [codes, 2 S]: 0, 1, 0, 1 … and then the same number all along

  Rows at(int64_t code, int64_t count, int64_t most) const {
    const bool begins = code == 1;
    return {begins ? 2 * count : count, begins ? pairs : slots, positions + (code - 1) * 2 * most};
  }
};

struct FrameMemory {
  PassMemory pass;
  float* logits;  // [B, the larger vocabulary]

  FrameMemory(const FrameModel& model, int64_t slots, Scratch& scratch)
      : pass(model.predictor, 2 * slots, scratch),
        logits(scratch.take<float>(slots * std::max(model.first_vocab, model.vocab))) {}
};

// One worker's part in a frame. Format: of the predictor's layers; Number: of everything else.
template <class Format, class Number>
class Frame {
  using Exact = typename ExactFormat<Number>::Is;

 public:
  Frame(const Worker& worker, const FrameModel& model, const Slots& slots, const Beats& beats, int64_t most,
        const Cache& cache, const FrameMemory& memory, const WorkerMemory& own, Candidates candidates)
      : worker(worker),
        model(model),
        slots(slots),
        beats(beats),
        most(most),
        cache(cache),
        memory(memory),
        own(own),
        candidates(candidates) {}

  void speak() {
    draw_first();
    for (int64_t code = 1; code < model.codes; ++code) {
      const Rows rows = beats.at(code, slots.count, most);
      hear(code, rows);
      Pass<Format, Number>(worker, model.predictor, rows, cache, memory.pass, own).run();
      worker.meet();
      draw(code, rows.count / slots.count);
    }
    worker.each_of(slots.count, [this](int64_t slot) { sum_up(slot); });
  }

 private:
  const Worker& worker;
  const FrameModel& model;
  const Slots& slots;
  const Beats& beats;
  const int64_t most;
  const Cache& cache;
  const FrameMemory& memory;
  WorkerMemory own;
  Candidates candidates;

  float* stream(int64_t row) { return memory.pass.stream + row * model.predictor.hidden; }
  float* logits(int64_t slot) { return memory.logits + slot * std::max(model.first_vocab, model.vocab); }
  int64_t* codes(int64_t slot) { return slots.codes + slot * model.codes; }
  const Number* hidden(int64_t slot) const {
    return static_cast<const Number*>(slots.hidden) + slot * model.hidden;
  }

  int64_t first_of(int64_t code) const { return code ? model.first_vocab + (code - 1) * model.vocab : 0; }
  const Number* embedding(int64_t code, int64_t value) const {
    return static_cast<const Number*>(model.embeddings) + (first_of(code) + value) * model.hidden;
  }
  const float* noise(int64_t slot, int64_t code) const {
    return slots.noise + slot * first_of(model.codes) + first_of(code);
  }

  void draw_first() {
    for (int64_t slot = 0; slot < slots.count; ++slot) {
      convert(hidden(slot), model.hidden, own.row);
      own.inputs.take<Exact>(slot, own.row, model.hidden);
    }
    score(model.first_head);
    worker.meet();
    worker.each_of(slots.count, [this](int64_t slot) {
      forbid(slot);
      codes(slot)[0] = candidates.draw(logits(slot), model.first_vocab, slots.first, slot, noise(slot, 0));
      slots.spoken[slot * model.first_vocab + codes(slot)[0]] = true;
    });
    worker.meet();
  }

  // Codes already spoken become less likely; control codes, and an end too early, impossible.
  void forbid(int64_t slot) {
    float* scores = logits(slot);
    const uint8_t* spoken = slots.spoken + slot * model.first_vocab;
    const float penalty = slots.penalty[slot];
    for (int64_t i = 0; i < model.first_vocab; ++i) {
      if (spoken[i]) scores[i] = scores[i] < 0 ? scores[i] * penalty : scores[i] / penalty;
      if (model.suppressed[i]) scores[i] = -__builtin_inff();
    }
    if (slots.num_frames[slot] < model.min_frames) scores[model.eos] = -__builtin_inff();
  }

  // The predictor's next inputs: at first what the talker means and the first code, then the code drawn last.
  void hear(int64_t code, const Rows& rows) {
    const int64_t each = rows.count / slots.count;
    auto heard = [&](int64_t row) {
      const int64_t slot = row / each;
      return row % each == each - 1 ? embedding(code - 1, codes(slot)[code - 1]) : hidden(slot);
    };
    if (!model.projection.weights) {
      worker.each_of(rows.count, [&](int64_t row) { convert(heard(row), model.hidden, stream(row)); });
      return;
    }
    for (int64_t row = 0; row < rows.count; ++row) {
      convert(heard(row), model.hidden, own.row);
      own.inputs.take<Exact>(row, own.row, model.hidden);
    }
    multiply<Exact>(worker, model.projection, own.inputs, rows.count,
                    [this](int64_t row, int64_t output, Floats low, Floats high) {
                      const float* bias = model.projection_bias + output;
                      store(stream(row) + output, low + load(bias));
                      store(stream(row) + output + kLanes, high + load(bias + kLanes));
                    });
  }

  void draw(int64_t code, int64_t each) {
    for (int64_t slot = 0; slot < slots.count; ++slot)
      own.inputs.take<Exact>(slot, stream(slot * each + each - 1), model.predictor.hidden);
    score(model.heads[code - 1]);
    worker.meet();
    worker.each_of(slots.count, [&](int64_t slot) {
      codes(slot)[code] = candidates.draw(logits(slot), model.vocab, slots.rest, slot, noise(slot, code));
    });
    worker.meet();
  }

  void score(const Product& head) {
    multiply<Exact>(worker, head, own.inputs, slots.count,
                    [this](int64_t slot, int64_t output, Floats low, Floats high) {
                      store(logits(slot) + output, low);
                      store(logits(slot) + output + kLanes, high);
                    });
  }

  void sum_up(int64_t slot) {
    const Number* text = static_cast<const Number*>(slots.text_table) + slots.text[slot] * model.hidden;
    Number* next = static_cast<Number*>(slots.next_input) + slot * model.hidden;
    for (int64_t i = 0; i < model.hidden; i += kLanes) {
      Floats heard = zeros();
      for (int64_t code = 0; code < model.codes; ++code)
        heard = heard + load(embedding(code, codes(slot)[code]) + i);
      store(next + i, heard + load(text + i));
    }
  }
};

}  // namespace
