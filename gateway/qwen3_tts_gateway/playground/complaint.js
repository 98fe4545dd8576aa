// Troubles, told beside what they are about.

import { Trouble } from "./gateway.js";

const $ = (id) => document.getElementById(id);

/** Run a step; its trouble is told in the element `place`, and marked at the control it is about. */
export async function troublesIn(place, step) {
  place.hidden = true;
  document.querySelectorAll(`[aria-errormessage=${place.id}]`).forEach(settle);
  try {
    await step();
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    place.textContent = error.message;
    place.hidden = false;
    mark(
      error.controls.map($).find((control) => control?.checkVisibility()),
      place,
    );
  }
}

/** What was wrong with a control is being mended. */
export function settle(control) {
  control.removeAttribute("aria-invalid");
  control.removeAttribute("aria-errormessage");
}

function mark(control, place) {
  if (!control) return;
  control.setAttribute("aria-invalid", "true");
  control.setAttribute("aria-errormessage", place.id);
  // The key is far from where its trouble is told: whoever is sent there would not read it.
  if (control.id !== "key") control.focus();
}
