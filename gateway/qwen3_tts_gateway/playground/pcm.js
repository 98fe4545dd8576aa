// Speech as the server sends it (16-bit little-endian, mono, 24 kHz) and as browsers and files have it.

export const SAMPLE_RATE = 24000;

const WAV_HEADER_BYTES = 44;

/** Bytes in, whole samples out: the network cuts where it likes, in the middle of a sample too. */
export class PcmDecoder {
  #rest = new Uint8Array(0);

  push(bytes) {
    const joined = new Uint8Array(this.#rest.length + bytes.length);
    joined.set(this.#rest);
    joined.set(bytes, this.#rest.length);
    const numSamples = joined.length >> 1;
    this.#rest = joined.slice(numSamples * 2);
    return new Int16Array(joined.buffer, 0, numSamples);
  }
}

/** What was received of one utterance, or what is in a recording: chunks of Int16Array. */
export class Sound {
  chunks = [];
  numSamples = 0;

  static of(samples) {
    const sound = new Sound();
    sound.push(samples);
    return sound;
  }

  push(samples) {
    this.chunks.push(samples);
    this.numSamples += samples.length;
  }

  get duration_s() {
    return this.numSamples / SAMPLE_RATE;
  }

  wav() {
    return new Blob([wavHeader(this.numSamples), ...this.chunks], { type: "audio/wav" });
  }
}

export function toFloats(samples) {
  return Float32Array.from(samples, (sample) => sample / 0x8000);
}

export function toInt16(floats) {
  return Int16Array.from(floats, (value) => Math.round(Math.max(-1, Math.min(1, value)) * 0x7fff));
}

function wavHeader(numSamples) {
  const numBytes = numSamples * 2;
  const header = new DataView(new ArrayBuffer(WAV_HEADER_BYTES));
  const write = (offset, text) => [...text].forEach((c, i) => header.setUint8(offset + i, c.charCodeAt(0)));
  write(0, "RIFF");
  header.setUint32(4, WAV_HEADER_BYTES - 8 + numBytes, true);
  write(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true); // PCM
  header.setUint16(22, 1, true); // channels
  header.setUint32(24, SAMPLE_RATE, true);
  header.setUint32(28, SAMPLE_RATE * 2, true);
  header.setUint16(32, 2, true); // bytes of a sample
  header.setUint16(34, 16, true); // bits of a sample
  write(36, "data");
  header.setUint32(40, numBytes, true);
  return header;
}
