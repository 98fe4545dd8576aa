// Plays chunks back to back while more of them arrive.

import { SAMPLE_RATE, toFloats } from "./pcm.js";

// How far ahead of the ear a chunk is scheduled: at the start, and after the network was late once.
const FIRST_LEAD_S = 0.08;
const LATER_LEAD_S = 0.25;

/** The page's one way to the ear; wake it within a click or a key press, or the browser keeps it silent. */
export class Loudspeaker {
  #context = null;

  wake() {
    this.#context ??= newContext();
    // An iPhone that was locked has it "interrupted". Where it may not sound yet, this takes until it may.
    if (this.#context.state !== "running") this.#context.resume().catch(() => {});
  }

  play() {
    this.wake();
    return new Playback(this.#context);
  }
}

/** One utterance on its way to the ear. */
class Playback {
  #context;
  #sources = new Set();
  #scheduled_s = 0;
  #played_s = 0;
  #ends_at = 0;
  #isComplete = false;
  #settle;

  /** Settles when the last sample was heard, or after `stop`. */
  over = new Promise((resolve) => (this.#settle = resolve));

  constructor(context) {
    this.#context = context;
  }

  /** The sound is held back, by the browser or for want of a device. */
  get isMute() {
    return this.#context.state !== "running";
  }

  /** How much of it was heard so far. */
  get played_s() {
    const ahead_s = Math.max(0, this.#ends_at - this.#context.currentTime);
    // After a gap the lead is ahead, too; time does not run backwards for that.
    this.#played_s = Math.max(this.#played_s, this.#scheduled_s - ahead_s);
    return this.#played_s;
  }

  push(samples) {
    const source = this.#source(samples);
    const now = this.#context.currentTime;
    if (this.#ends_at <= now) this.#ends_at = now + (this.#scheduled_s ? LATER_LEAD_S : FIRST_LEAD_S);
    source.start(this.#ends_at);
    this.#ends_at += source.buffer.duration;
    this.#scheduled_s += source.buffer.duration;
  }

  /** No more will come. */
  complete() {
    this.#isComplete = true;
    this.#endIfSilent();
  }

  stop() {
    this.#isComplete = true;
    for (const source of this.#sources) source.stop();
    this.#sources.clear();
    this.#endIfSilent();
  }

  #source(samples) {
    const source = this.#context.createBufferSource();
    source.buffer = this.#context.createBuffer(1, samples.length, SAMPLE_RATE);
    source.buffer.copyToChannel(toFloats(samples), 0);
    source.connect(this.#context.destination);
    this.#sources.add(source);
    source.onended = () => {
      this.#sources.delete(source);
      this.#endIfSilent();
    };
    return source;
  }

  #endIfSilent() {
    if (this.#isComplete && !this.#sources.size) this.#settle();
  }
}

function newContext() {
  try {
    // At the speech's own rate chunks join without a seam; elsewhere each is resampled by itself.
    return new AudioContext({ sampleRate: SAMPLE_RATE });
  } catch {
    return new AudioContext();
  }
}
