// The recording to clone: how it gets here, looks and sounds.

import { troublesIn } from "./complaint.js";
import { LONGEST_S, Microphone, Recording } from "./recording.js";
import { Waveform } from "./waveform.js";

const TICK_MS = 200;
const UNREADABLE = "This browser cannot play it; the server may.";

const $ = (id) => document.getElementById(id);

export class Reference {
  recording = null;
  #loudspeaker;
  #onChange;
  #microphone = new Microphone();
  #waveform = new Waveform($("reference-waveform"), 4);
  #playback = null;

  constructor(loudspeaker, onChange) {
    this.#loudspeaker = loudspeaker;
    this.#onChange = onChange;
    $("record").onclick = () => (this.#microphone.isOn ? this.#microphone.stop() : this.#record());
    $("file").onchange = () => this.#read();
    $("listen").onclick = () => (this.#playback ? this.#playback.stop() : this.#listen());
    $("remove").onclick = () => this.#remove();
  }

  /** Neither listen nor play any longer. */
  stop() {
    this.#microphone.stop();
    this.#playback?.stop();
  }

  #record() {
    this.stop();
    return troublesIn($("recording-complaint"), async () => {
      let clock;
      try {
        const blob = await this.#microphone.record(() => (clock = this.#showClock()));
        this.#keep(await Recording.ofMicrophone(blob));
        $("file").value = "";
      } finally {
        clearInterval(clock);
        $("record").textContent = "Record";
        delete $("record").dataset.on;
      }
    });
  }

  #showClock() {
    const began_ms = performance.now();
    const show = () => {
      const seconds = Math.floor((performance.now() - began_ms) / 1000);
      $("record").textContent = `Stop recording, ${clockTime(seconds)} of ${clockTime(LONGEST_S)}`;
    };
    $("record").dataset.on = "";
    show();
    return setInterval(show, TICK_MS);
  }

  #read() {
    const [file] = $("file").files;
    return troublesIn($("recording-complaint"), async () =>
      this.#keep(file ? await Recording.ofFile(file) : null),
    );
  }

  #remove() {
    this.stop();
    $("file").value = "";
    this.#keep(null);
    $("record").focus();
  }

  #keep(recording) {
    this.recording = recording;
    URL.revokeObjectURL($("reference-download").href);
    $("reference").hidden = !recording;
    if (recording) this.#show(recording);
    this.#onChange();
  }

  #show({ sound, file, isNew }) {
    $("reference-length").textContent = sound ? `${sound.duration_s.toFixed(1)} s` : UNREADABLE;
    $("reference-download").hidden = !isNew;
    $("reference-download").href = URL.createObjectURL(file);
    $("listen").hidden = $("reference-waveform").hidden = !sound;
    this.#waveform.clear();
    sound?.chunks.forEach((samples) => this.#waveform.push(samples));
    this.#waveform.complete();
  }

  async #listen() {
    const playback = (this.#playback = this.#loudspeaker.play());
    $("listen").textContent = "Stop";
    this.recording.sound.chunks.forEach((samples) => playback.push(samples));
    playback.complete();
    this.#waveform.follow(() => playback.played_s);
    await playback.over;
    this.#waveform.rest();
    $("listen").textContent = "Listen";
    this.#playback = null;
  }
}

function clockTime(seconds) {
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}
