// Bars on a canvas: heard ones in the accent’s colour, those still ahead paler, dots for what is to come.

import { SAMPLE_RATE } from "./pcm.js";

const PEAK_SAMPLES = 120; // 5 ms
const PEAKS_PER_S = SAMPLE_RATE / PEAK_SAMPLES;
const FIRST_WINDOW_S = 6;
const SHORTEST_WINDOW_S = 1;
const HEADROOM = 0.92;

const isStill = matchMedia("(prefers-reduced-motion: reduce)");
const isDark = matchMedia("(prefers-color-scheme: dark)");

export class Waveform {
  #canvas;
  #pitch_px;
  #peaks = [];
  #peak = 0;
  #numInPeak = 0;
  #isComplete = false;
  #isWaiting = false;
  #played_s = () => Infinity;
  #frame = 0;

  /** A bar every `pitch_px`, half of it ink. */
  constructor(canvas, pitch_px = 6) {
    this.#canvas = canvas;
    this.#pitch_px = pitch_px;
    new ResizeObserver(() => this.draw()).observe(canvas);
    for (const setting of [isStill, isDark]) setting.addEventListener("change", () => this.draw());
  }

  /** Empty again, rippling as long as nothing comes. */
  wait() {
    this.clear();
    this.#isWaiting = true;
    this.#animate();
  }

  clear() {
    this.#peaks = [];
    this.#peak = this.#numInPeak = 0;
    this.#isComplete = this.#isWaiting = false;
    this.rest();
  }

  push(samples) {
    this.#isWaiting = false;
    for (const sample of samples) {
      this.#peak = Math.max(this.#peak, Math.abs(sample) / 0x8000);
      if (++this.#numInPeak < PEAK_SAMPLES) continue;
      this.#peaks.push(this.#peak);
      this.#peak = this.#numInPeak = 0;
    }
    this.draw();
  }

  /** Nothing more comes: what is there fills the width. */
  complete() {
    this.#isComplete = true;
    this.#isWaiting = false;
    this.draw();
  }

  /** Move along with the ear, until `rest`; `played_s()` is where it is. */
  follow(played_s) {
    this.#played_s = played_s;
    this.#animate();
  }

  /** Stand still; all of it was heard. */
  rest() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#played_s = () => Infinity;
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    if (!width) return;
    const pen = this.#pen(width, height);
    const styles = getComputedStyle(this.#canvas);
    const [heard, ahead, empty] = ["heard", "ahead", "empty"].map((n) =>
      styles.getPropertyValue(`--wave-${n}`),
    );
    const numBars = Math.floor(width / this.#pitch_px);
    const left = (width - (numBars - 1) * this.#pitch_px) / 2;
    const bar_s = this.#window_s / numBars;
    const played_s = this.#played_s();
    pen.lineCap = "round";
    pen.lineWidth = this.#pitch_px / 2;
    for (let bar = 0; bar < numBars; bar++) {
      const peak = this.#loudest(bar * bar_s, (bar + 1) * bar_s);
      const reach = peak === null ? this.#ripple(bar / numBars) : (Math.sqrt(peak) * HEADROOM * height) / 2;
      const colour = peak === null ? empty : bar * bar_s < played_s ? heard : ahead;
      stroke(pen, left + bar * this.#pitch_px, height / 2, Math.max(0.5, reach - pen.lineWidth / 2), colour);
    }
  }

  /** Doubling keeps bars where they are for as long as possible while an utterance grows. */
  get #window_s() {
    const length_s = this.#peaks.length / PEAKS_PER_S;
    if (this.#isComplete) return Math.max(SHORTEST_WINDOW_S, length_s);
    return FIRST_WINDOW_S * 2 ** Math.max(0, Math.ceil(Math.log2(length_s / FIRST_WINDOW_S)));
  }

  /** Null where nothing is yet. */
  #loudest(from_s, to_s) {
    const first = Math.floor(from_s * PEAKS_PER_S);
    if (first >= this.#peaks.length) return null;
    const last = Math.max(first + 1, Math.floor(to_s * PEAKS_PER_S));
    let loudest = 0;
    for (let index = first; index < last && index < this.#peaks.length; index++) {
      loudest = Math.max(loudest, this.#peaks[index]);
    }
    return loudest;
  }

  #ripple(position) {
    if (!this.#isWaiting || isStill.matches) return 0;
    const centre = ((performance.now() / 1600) % 1.4) - 0.2;
    return 14 * Math.exp(-(((position - centre) / 0.07) ** 2));
  }

  #pen(width, height) {
    const scale = devicePixelRatio;
    const [across, down] = [Math.round(width * scale), Math.round(height * scale)];
    if (this.#canvas.width !== across || this.#canvas.height !== down) {
      Object.assign(this.#canvas, { width: across, height: down });
    }
    const pen = this.#canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    return pen;
  }

  #animate() {
    cancelAnimationFrame(this.#frame);
    this.#frame = requestAnimationFrame(() => {
      this.draw();
      this.#animate();
    });
  }
}

function stroke(pen, x, middle, reach, colour) {
  pen.strokeStyle = colour;
  pen.beginPath();
  pen.moveTo(x, middle - reach);
  pen.lineTo(x, middle + reach);
  pen.stroke();
}
