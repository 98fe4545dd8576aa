// What the form says, as a request to /v1/audio/speech.

import { Trouble } from "./gateway.js";

const $ = (id) => document.getElementById(id);

export function chosen(name) {
  return document.querySelector(`[name=${name}]:checked`).value;
}

/** How many times as fast as usual, as the slider stands. */
export function speed() {
  return Number((4 ** $("speed").value).toFixed(2));
}

/** The request but for its recording; the form may still be incomplete. */
export function requestOf(savedVoice) {
  return withoutBlanks({
    model: "qwen3-tts",
    input: $("text").value,
    ...voiceOf(savedVoice),
    language: $("language").value,
    response_format: "pcm",
    speed: speed() === 1 ? null : speed(),
    seed: $("seed").value.trim() ? Number($("seed").value) : null,
  });
}

/** Whether the voice is that of a recording which goes along with the request. */
export function wantsRecording() {
  return chosen("task") === "cloned" && chosen("source") === "recording";
}

/** Throws Trouble about the first thing that is missing. */
export function check(savedVoice, recording) {
  if (!$("text").value.trim()) throw new Trouble("There is nothing to say yet: write a text.", "text");
  if (wantsRecording()) checkRecording(recording);
  else if (chosen("task") === "cloned" && !savedVoice) {
    throw new Trouble("There is no saved voice yet: clone a recording’s.", "source-saved");
  }
  if (chosen("task") === "designed" && !$("description").value.trim()) {
    throw new Trouble("Describe the voice first.", "description");
  }
  const seed = $("seed").value.trim();
  if (seed && !(/^-?\d+$/.test(seed) && Number.isSafeInteger(Number(seed)))) {
    throw new Trouble("The seed is a whole number of at most 15 digits, or nothing.", "seed");
  }
}

/** Throws Trouble about what is missing before a voice may be kept. */
export function checkConsent(name, recording) {
  checkRecording(recording);
  if (!name) throw new Trouble("The voice wants a name.", "name");
  if (!$("consent").checked) throw new Trouble("A voice is kept only if its speaker has agreed.", "consent");
}

function checkRecording(recording) {
  if (!recording) throw new Trouble("There is no voice yet: record one, or choose a file.", "record");
  if (!$("transcript").value.trim() && !$("x-vector").checked) {
    throw new Trouble("Write down what is said in the recording, or settle for its timbre.", "transcript");
  }
}

function voiceOf(savedVoice) {
  switch (chosen("task")) {
    case "designed":
      return { task_type: "VoiceDesign", instructions: $("description").value.trim() };
    case "built-in":
      return { task_type: "CustomVoice", voice: $("speaker").value, instructions: $("style").value.trim() };
    default:
      return { task_type: "Base", ...(wantsRecording() ? transcribed() : { voice: savedVoice }) };
  }
}

function transcribed() {
  return $("x-vector").checked ? { x_vector_only_mode: true } : { ref_text: $("transcript").value.trim() };
}

function withoutBlanks(fields) {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null && value !== ""));
}
