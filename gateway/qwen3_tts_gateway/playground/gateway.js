// The gateway's routes, and what goes wrong there in words.

// The codes of `errors.py`; other refusals tell themselves.
const TELLINGS = {
  invalid_api_key: ({ message, hadKey }) =>
    hadKey
      ? `The API key is not accepted: ${message}.`
      : "This server asks for an API key; the field is at the top.",
  insufficient_scope: ({ message }) => `The API key does not allow this: ${message}.`,
  rate_limit_exceeded: ({ message, wait }) => `Too much at once: ${message}. ${wait}`,
  overloaded: ({ wait }) => `The server has no room for one more speaker. ${wait}`,
  unavailable: ({ wait, message }) =>
    `The speech server behind the gateway cannot be reached. ${wait} (${message})`,
  shutting_down: ({ wait }) => `The server is shutting down. ${wait}`,
};

// What a status means where no code comes along: from the original API's routes, or a proxy.
const BY_STATUS = {
  401: "invalid_api_key",
  403: "insufficient_scope",
  429: "rate_limit_exceeded",
  503: "unavailable",
};

const ABOUT_THE_KEY = new Set(["invalid_api_key", "insufficient_scope"]);

// A field of a request -> the ids of the controls it may come from, unless they have its name.
const CONTROLS = {
  input: ["text"],
  voice: ["speaker", "shelf"],
  instructions: ["style", "description"],
  ref_audio: ["file"],
  audio_sample: ["file"],
  ref_text: ["transcript"],
};

/** Something the user can read, and the ids of the controls it may be about: the one that is shown. */
export class Trouble extends Error {
  constructor(words, ...controls) {
    super(words);
    this.controls = controls;
  }
}

export class Gateway {
  #key;

  /** Asks `key` for the API key each time; empty where there is none. */
  constructor(key) {
    this.#key = key;
  }

  async voices() {
    return (await this.#ask("v1/audio/voices")).json();
  }

  async languages() {
    return (await (await this.#ask("api/v1/custom-voice/languages")).json()).languages;
  }

  /** The response whose body is speech, as it is being spoken; aborting the signal stops the speaking. */
  speak(request, signal) {
    const headers = { "Content-Type": "application/json" };
    return this.#ask("v1/audio/speech", { method: "POST", headers, body: JSON.stringify(request), signal });
  }

  async saveVoice(form) {
    await this.#ask("v1/audio/voices", { method: "POST", body: form });
  }

  async deleteVoice(name) {
    await this.#ask(`v1/audio/voices/${encodeURIComponent(name)}`, { method: "DELETE" });
  }

  async #ask(path, { headers = {}, ...options } = {}) {
    const key = this.#key();
    if (/[^\x21-\x7e]/.test(key)) throw new Trouble("The API key has characters that no key has.", "key");
    const authorization = key ? { Authorization: `Bearer ${key}` } : {};
    const response = await reached(() =>
      fetch(path, { ...options, headers: { ...headers, ...authorization } }),
    );
    if (!response.ok) throw await troubleOf(response, key !== "");
    return response;
  }
}

/** The bytes of a response as they come. */
export async function* piecesOf(response) {
  const reader = response.body.getReader(); // Safari cannot iterate over the body itself
  while (true) {
    const { done, value } = await reached(
      () => reader.read(),
      "The speech broke off: the connection is gone.",
    );
    if (done) return;
    yield value;
  }
}

/** A failure of the network in words; an abort stays what it is. */
async function reached(step, words = "The gateway cannot be reached. Is it running, and are you online?") {
  try {
    return await step();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble(words);
  }
}

async function troubleOf(response, hadKey) {
  const { message, code, param } = await errorOf(response);
  const tell = TELLINGS[code];
  if (tell) {
    const words = tell({ message, hadKey, wait: waitOf(response) });
    return new Trouble(words, ...(ABOUT_THE_KEY.has(code) ? ["key"] : []));
  }
  if (response.status >= 500) {
    const id = response.headers.get("X-Request-Id");
    return new Trouble(`${sentence(message)}${id ? ` Request ${id}.` : ""}`);
  }
  return new Trouble(sentence(message), ...(CONTROLS[param] ?? [param]));
}

/** From OpenAI's envelope, the original API's, or that of whatever proxy stands between. */
async function errorOf(response) {
  const body = await response.json().catch(() => ({}));
  const message = body.error?.message ?? (typeof body.detail === "string" ? body.detail : null);
  return {
    message: message ?? `the server answered ${response.status} ${response.statusText}`.trim(),
    code: body.error?.code ?? BY_STATUS[response.status],
    param: body.error?.param ?? null,
  };
}

function waitOf(response) {
  const seconds = Number(response.headers.get("Retry-After"));
  return seconds ? `Try again in ${seconds} s.` : "Try again in a moment.";
}

function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}
