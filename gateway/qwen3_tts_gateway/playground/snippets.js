// A request as code for the shell and for Python, the key left open.

export const SNIPPETS = { curl, python };

const OPENAI_ARGUMENTS = ["model", "voice", "input", "instructions", "response_format", "speed"];
const PLAY = "ffplay -f s16le -ar 24000 speech.pcm";

/** `recording` is the name of the file that stands for `ref_audio`. */
function curl(request, { url, recording }) {
  // Longer than a command line may be, and the one thing in the here-document that the shell is to expand.
  const audio = recording && `$(base64 < ${shellWord(recording)} | tr -d '\\n')`;
  const body = hereDocument(JSON.stringify(request, null, 2));
  return [
    `curl ${shellWord(`${url}/audio/speech`)} \\`,
    `  -H "Authorization: Bearer YOUR_API_KEY" \\`,
    `  -H "Content-Type: application/json" \\`,
    `  --data-binary @- --output speech.pcm <<JSON`,
    audio ? body.replace(/\n}$/, () => `,\n  "ref_audio": "${audio}"\n}`) : body,
    "JSON",
    `# 16-bit mono at 24 kHz: ${PLAY}`,
  ].join("\n");
}

function python(request, { url, recording }) {
  const all = { voice: "", ...request };
  const own = Object.entries(all).filter(([name]) => OPENAI_ARGUMENTS.includes(name));
  const extra = Object.entries(all).filter(([name]) => !OPENAI_ARGUMENTS.includes(name));
  const extraLines = extra.map(([name, value]) => `        ${JSON.stringify(name)}: ${literal(value)},`);
  if (recording) extraLines.push(`        "ref_audio": base64.b64encode(recording).decode(),`);
  return [
    ...(recording ? ["import base64"] : []),
    "import wave",
    ...(recording ? ["from pathlib import Path"] : []),
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(url)}, api_key="YOUR_API_KEY")`,
    ...(recording ? [`recording = Path(${literal(recording)}).read_bytes()`] : []),
    "",
    "with client.audio.speech.with_streaming_response.create(",
    ...own.map(([name, value]) => `    ${name}=${literal(value)},`),
    ...(extraLines.length ? ["    extra_body={", ...extraLines, "    },"] : []),
    `) as speech, wave.open("speech.wav", "wb") as wav:`,
    "    wav.setnchannels(1)",
    "    wav.setsampwidth(2)",
    "    wav.setframerate(24000)",
    "    for pcm in speech.iter_bytes(4096):",
    "        wav.writeframes(pcm)",
  ].join("\n");
}

/** JSON's strings and numbers are Python's as well. */
function literal(value) {
  if (typeof value === "boolean") return value ? "True" : "False";
  return JSON.stringify(value);
}

function shellWord(text) {
  return /^[\w./:-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

function hereDocument(text) {
  return text.replaceAll(/[\\$`]/g, "\\$&");
}
