// A recording to clone: from the microphone or a file, as the server takes it.

import { Trouble } from "./gateway.js";
import { SAMPLE_RATE, Sound, toInt16 } from "./pcm.js";

export const LONGEST_S = 30;
const SHORTEST_S = 1;
const MOST_BYTES = 10 << 20;

/** Bytes to send, and the samples to look at and listen to (null where the browser cannot read them). */
export class Recording {
  constructor(file, name, sound) {
    Object.assign(this, { file, name, sound });
  }

  static #written(sound) {
    return new Recording(sound.wav(), "recording.wav", sound);
  }

  /** It was made here: the user has no such file yet. */
  get isNew() {
    return !(this.file instanceof File);
  }

  /** What was chosen: as it is where the server reads that, as WAV elsewhere. */
  static async ofFile(file) {
    const sound = await decoded(file).catch(() => null);
    const isTaken = file.size <= MOST_BYTES && (await isKnown(file));
    if (!sound && !isTaken) {
      throw new Trouble("This is no recording of a common format, or larger than 10 MiB.", "file");
    }
    const recording = isTaken ? new Recording(file, file.name, sound) : Recording.#written(sound);
    return recording.#checked("file");
  }

  /** What the browser recorded, in whichever format, as WAV. */
  static async ofMicrophone(blob) {
    const sound = await decoded(blob).catch(() => null);
    if (!sound) throw new Trouble("Nothing could be heard in what was recorded.", "record");
    return Recording.#written(sound).#checked("record");
  }

  #checked(control) {
    const seconds = this.sound?.duration_s ?? SHORTEST_S;
    if (seconds < SHORTEST_S || seconds > LONGEST_S + 0.2) {
      const length = `${seconds.toFixed(1)} s`;
      throw new Trouble(
        `The recording lasts ${length}; ${SHORTEST_S} to ${LONGEST_S} s are needed.`,
        control,
      );
    }
    return this;
  }

  /** For a request's `ref_audio`. */
  async base64() {
    const reader = new FileReader();
    await new Promise((resolve, reject) => {
      reader.onload = resolve;
      reader.onerror = () => reject(new Trouble("The file of the recording is gone.", "file"));
      reader.readAsDataURL(this.file);
    });
    return reader.result.split(",")[1];
  }
}

/** Listens until it is told to stop, or until the recording is as long as one may be. */
export class Microphone {
  #recorder = null;

  get isOn() {
    return this.#recorder !== null;
  }

  /** What was recorded, once it has ended; `onStart` hears when it has begun. */
  async record(onStart) {
    const stream = await openMicrophone();
    const pieces = [];
    this.#recorder = new MediaRecorder(stream);
    this.#recorder.ondataavailable = ({ data }) => pieces.push(data);
    const ended = new Promise((resolve) => (this.#recorder.onstop = resolve));
    this.#recorder.start();
    const limit = setTimeout(() => this.stop(), LONGEST_S * 1000);
    onStart();
    await ended;
    clearTimeout(limit);
    stream.getTracks().forEach((track) => track.stop());
    this.#recorder = null;
    return new Blob(pieces, { type: pieces[0]?.type });
  }

  stop() {
    if (this.#recorder?.state === "recording") this.#recorder.stop();
  }
}

async function openMicrophone() {
  if (!navigator.mediaDevices || !globalThis.MediaRecorder) {
    throw new Trouble(
      "Browsers record only on pages from https:// or localhost. Choose a file instead.",
      "record",
    );
  }
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    const words =
      error.name === "NotAllowedError"
        ? "The browser may not use the microphone: allow it in the address bar, or choose a file."
        : "There is no microphone, or another program has it. Choose a file instead.";
    throw new Trouble(words, "record");
  }
}

/** Mixed down and at the speech's rate. */
async function decoded(blob) {
  const bytes = await blob.arrayBuffer();
  const audio = await new OfflineAudioContext(1, 1, SAMPLE_RATE).decodeAudioData(bytes);
  const channels = Array.from({ length: audio.numberOfChannels }, (_, index) => audio.getChannelData(index));
  const mean = channels[0].map(
    (_, i) => channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length,
  );
  return Sound.of(toInt16(mean));
}

/** WAV, FLAC, Ogg, MP3, AAC or M4A by its first bytes. */
async function isKnown(file) {
  const start = new Uint8Array(await file.slice(0, 12).arrayBuffer());
  const text = String.fromCharCode(...start);
  const isMpeg = start[0] === 0xff && (start[1] & 0xe0) === 0xe0; // MP3 frames, and AAC's
  return isMpeg || /^(RIFF|fLaC|OggS|ID3|....ftyp)/s.test(text);
}
