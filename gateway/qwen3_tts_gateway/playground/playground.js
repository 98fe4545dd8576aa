// The page: what is typed and clicked, and what happens then.

import { settle, troublesIn } from "./complaint.js";
import { Gateway } from "./gateway.js";
import { Loudspeaker } from "./player.js";
import { Reference } from "./reference.js";
import { check, checkConsent, chosen, requestOf, speed, wantsRecording } from "./request.js";
import { made, Shelf } from "./shelf.js";
import { SNIPPETS } from "./snippets.js";
import { Stage } from "./stage.js";

const KEY = "qwen3-tts-key"; // of the session's storage
const CONSENT = "The speaker has agreed that this voice is cloned and kept.";
const COPIED_MS = 2000;

const $ = (id) => document.getElementById(id);

const gateway = new Gateway(() => $("key").value.trim());
const loudspeaker = new Loudspeaker();
const stage = new Stage(loudspeaker);
const reference = new Reference(loudspeaker, reflect);
const shelf = new Shelf($("shelf"), $("shelf-empty"), deleteVoice);

let numFillings = 0;
let aboutSpeakers = new Map();

$("key").value = sessionStorage.getItem(KEY) ?? "";
$("request").onsubmit = (event) => (event.preventDefault(), speak());
$("keep").onsubmit = (event) => (event.preventDefault(), saveVoice());
$("retry").onclick = fillLists;
$("copy").onclick = copySnippet;
$("key").onchange = rememberKey;
document.addEventListener("input", ({ target }) => (settle(target), reflect()));
document.addEventListener("keydown", onKey);
reflect();
fillLists();

async function speak() {
  loudspeaker.wake(); // before anything is waited for
  reference.stop();
  await troublesIn($("complaint"), async () => {
    check(shelf.chosen, reference.recording);
    const audio = wantsRecording() ? { ref_audio: await reference.recording.base64() } : {};
    await stage.speak(gateway, { ...requestOf(shelf.chosen), ...audio });
  });
}

function onKey(event) {
  if ($("deleting").open) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    $("request").requestSubmit();
  } else if (event.key === "Escape") {
    stage.stop();
    reference.stop();
  }
}

function rememberKey() {
  sessionStorage.setItem(KEY, $("key").value.trim());
  fillLists();
}

async function fillLists() {
  const filling = ++numFillings;
  const [voices, languages] = await Promise.allSettled([gateway.voices(), gateway.languages()]);
  if (filling !== numFillings) return; // asked again meanwhile
  if (voices.status === "fulfilled") {
    fillSpeakers(voices.value.voices);
    shelf.fill(voices.value.uploaded_voices);
  }
  if (languages.status === "fulfilled") fillLanguages(languages.value);
  const failure = [voices, languages].find(({ status }) => status === "rejected")?.reason;
  await troublesIn($("lists-complaint"), () => failure && Promise.reject(failure));
  if (!failure && document.activeElement === $("retry")) $("speaker").focus(); // the button goes
  $("retry").hidden = !failure;
  reflect();
}

function fillSpeakers(voices) {
  aboutSpeakers = new Map(voices.map((voice) => [voice.id, voice]));
  const namesOf = (kind) => voices.filter((voice) => voice.kind === kind).map(({ id }) => id);
  const groups = [
    ...namesOf("built_in").map(option),
    made("optgroup", { label: "By OpenAI’s names" }, namesOf("alias").map(option)),
  ];
  fill(
    $("speaker"),
    groups.filter(({ tagName, children }) => tagName === "OPTION" || children.length),
  );
}

function fillLanguages(languages) {
  const [automatic] = $("language").options;
  fill($("language"), [automatic, ...languages.filter((name) => name.toLowerCase() !== "auto").map(option)]);
}

/** What was chosen stays so, if it is still there. */
function fill(select, children) {
  const { value } = select;
  select.replaceChildren(...children);
  if ([...select.options].some((one) => one.value === value)) select.value = value;
}

function option(name) {
  return new Option(name, name);
}

async function saveVoice() {
  const name = $("name").value.trim();
  await troublesIn($("keep-complaint"), async () => {
    $("keep-state").textContent = "";
    checkConsent(name, reference.recording);
    $("keep-state").textContent = "Listening to the recording…";
    try {
      await gateway.saveVoice(keptForm(name, reference.recording));
    } catch (error) {
      $("keep-state").textContent = "";
      throw error;
    }
    $("keep-state").textContent = `Saved as ${name}; it is among the saved voices now.`;
    $("name").value = "";
    $("consent").checked = false;
    await fillLists();
    shelf.choose(name);
  });
}

function keptForm(name, recording) {
  const form = new FormData();
  form.set("name", name);
  form.set("consent", CONSENT);
  if (!$("x-vector").checked) form.set("ref_text", $("transcript").value.trim());
  form.set("audio_sample", recording.file, recording.name);
  return form;
}

async function deleteVoice(name) {
  if (!(await isSure(name))) return;
  await troublesIn($("shelf-complaint"), async () => {
    await gateway.deleteVoice(name);
    $("shelf-state").textContent = `${name} was deleted.`;
    await fillLists();
    shelf.focus();
  });
}

async function isSure(name) {
  const dialog = $("deleting");
  dialog.returnValue = "";
  $("deleting-heading").textContent = `Delete ${name}?`;
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  return dialog.returnValue === "delete";
}

/** Show what the form's values imply. */
function reflect() {
  for (const panel of document.querySelectorAll(".panel")) {
    const [[group, value]] = Object.entries(panel.dataset);
    panel.hidden = chosen(group) !== value;
  }
  $("transcript").disabled = $("x-vector").checked;
  $("count").textContent = `${$("text").value.length} characters`;
  $("speed-shown").textContent = `${speed()}×`;
  $("speed").ariaValueText = `${speed()} times`;
  $("speaker-note").textContent = aboutSpeaker(aboutSpeakers.get($("speaker").value));
  $("snippet").textContent = snippet();
}

function aboutSpeaker(voice) {
  if (!voice) return "";
  const languages = voice.languages?.length ? `native in ${voice.languages.join(", ")}` : "";
  return [voice.description, languages].filter(Boolean).join("; ");
}

function snippet() {
  const url = new URL("v1", document.baseURI).href;
  const recording = wantsRecording() ? (reference.recording?.name ?? "recording.wav") : null;
  return SNIPPETS[chosen("snippet")](requestOf(shelf.chosen), { url, recording });
}

async function copySnippet() {
  const isCopied = await copied($("snippet"));
  $("copy").textContent = isCopied ? "Copied" : "Press Ctrl C";
  $("copy-state").textContent = isCopied ? "Copied" : "Selected: press Control C";
  setTimeout(() => ($("copy").textContent = "Copy"), COPIED_MS);
}

/** Whether it is on the clipboard; otherwise it is selected at least. */
async function copied(element) {
  getSelection().selectAllChildren(element);
  if (!navigator.clipboard) return document.execCommand("copy"); // all there is on a page from http://
  return navigator.clipboard.writeText(element.textContent).then(
    () => true,
    () => false,
  );
}
