// Where speech is seen and heard: waveform, state, figures; replay and download afterwards.

import { piecesOf, Trouble } from "./gateway.js";
import { PcmDecoder, Sound } from "./pcm.js";
import { Waveform } from "./waveform.js";

// A loudspeaker that is not awake by then will not be.
const WAKING_MS = 1500;

const $ = (id) => document.getElementById(id);

export class Stage {
  #loudspeaker;
  #waveform = new Waveform($("waveform"));
  #act = null; // what sounds, or is about to
  #sound = new Sound(); // what can be had again

  constructor(loudspeaker) {
    this.#loudspeaker = loudspeaker;
    $("stop").onclick = () => this.stop();
    $("replay").onclick = () => this.replay();
  }

  /** Speak as `request` says, to the last sound. Throws Trouble; a stop is none. */
  async speak(gateway, request) {
    const act = this.#begin(new Sound());
    this.#announce("Waiting for the first sound…");
    this.#waveform.wait();
    try {
      await this.#receive(act, await gateway.speak(request, act.abort.signal));
      await this.#hearOut(act);
    } catch (error) {
      if (this.#act !== act) return; // stopped, or another one has the stage
      this.#end(act, act.sound.numSamples ? `Broke off after ${seconds(act.sound)}` : "Nothing was spoken");
      throw error;
    }
  }

  /** Speak what is there once more. */
  async replay() {
    const act = this.#begin(this.#sound);
    this.#announce("Replaying…");
    this.#waveform.follow(() => act.playback.played_s);
    act.sound.chunks.forEach((samples) => act.playback.push(samples));
    await this.#hearOut(act);
  }

  /** Silence at once; the server stops, too. */
  stop() {
    const act = this.#act;
    if (act)
      this.#end(act, act.sound.numSamples ? `Stopped; ${seconds(act.sound)} were received` : "Stopped");
  }

  #begin(sound) {
    this.stop();
    this.#act = {
      sound,
      playback: this.#loudspeaker.play(),
      abort: new AbortController(),
      began_ms: performance.now(),
    };
    $("stop").ariaDisabled = "false";
    if (sound !== this.#sound) this.#forget();
    return this.#act;
  }

  #forget() {
    for (const id of ["first-audio", "real-time-factor", "received"]) $(id).textContent = "–";
    $("replay").hidden = $("download").hidden = true;
  }

  async #receive(act, response) {
    const decoder = new PcmDecoder();
    for await (const piece of piecesOf(response)) {
      const samples = decoder.push(piece);
      if (samples.length) this.#take(act, samples);
    }
    if (!act.sound.numSamples) throw new Trouble("The server answered without a sound.");
  }

  #take(act, samples) {
    const elapsed_s = (performance.now() - act.began_ms) / 1000;
    if (!act.sound.numSamples) {
      $("first-audio").textContent = `${Math.round(elapsed_s * 1000)} ms`;
      this.#announce("Speaking…");
      this.#waveform.follow(() => act.playback.played_s);
    }
    act.sound.push(samples);
    act.playback.push(samples);
    this.#waveform.push(samples);
    $("real-time-factor").textContent = (elapsed_s / act.sound.duration_s).toFixed(2);
    $("received").textContent = seconds(act.sound);
  }

  async #hearOut(act) {
    this.#offer(act.sound);
    act.playback.complete();
    await Promise.race([act.playback.over, mute(act.playback)]);
    const { isMute } = act.playback;
    this.#end(act, isMute ? "Received, but kept silent by the browser: press Replay" : done(act.sound));
  }

  #end(act, state) {
    if (this.#act !== act) return;
    this.#act = null;
    act.abort.abort();
    act.playback.stop();
    this.#waveform.rest();
    this.#announce(state);
    if (act.sound !== this.#sound) this.#offer(act.sound);
    $("stop").ariaDisabled = "true";
  }

  #offer(sound) {
    this.#sound = sound;
    if (!sound.numSamples) return this.#waveform.clear();
    this.#waveform.complete();
    $("waveform").ariaLabel = `Waveform of ${seconds(sound)} of speech`;
    URL.revokeObjectURL($("download").href);
    $("download").href = URL.createObjectURL(sound.wav());
    $("replay").hidden = $("download").hidden = false;
  }

  #announce(state) {
    $("state").textContent = state;
  }
}

async function mute(playback) {
  await new Promise((resolve) => setTimeout(resolve, WAKING_MS));
  if (!playback.isMute) await playback.over;
}

function done(sound) {
  return `Done: ${seconds(sound)} of speech`;
}

function seconds(sound) {
  return `${sound.duration_s.toFixed(sound.duration_s < 10 ? 2 : 1)} s`;
}
