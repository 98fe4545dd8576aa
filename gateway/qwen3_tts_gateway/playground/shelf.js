// The saved voices: to choose from, to delete.

/** The radios inside `list`; `onDelete` hears the name of the voice that is to go. */
export class Shelf {
  #list;
  #empty;
  #onDelete;

  constructor(list, empty, onDelete) {
    this.#list = list;
    this.#empty = empty;
    this.#onDelete = onDelete;
  }

  get chosen() {
    return this.#list.querySelector("input:checked")?.value ?? null;
  }

  choose(name) {
    for (const radio of this.#radios()) radio.checked = radio.value === name;
  }

  /** Voices as `uploaded_voices` has them; what was chosen stays so, if it is still there. */
  fill(voices) {
    const chosen = this.chosen;
    this.#list.replaceChildren(...voices.map((voice) => this.#row(voice)));
    this.#empty.hidden = voices.length > 0;
    this.choose(voices.some(({ name }) => name === chosen) ? chosen : voices[0]?.name);
  }

  /** Where a deleted voice's button was, the next thing is. */
  focus() {
    (this.#list.querySelector("input:checked") ?? document.getElementById("source-saved")).focus();
  }

  #radios() {
    return this.#list.querySelectorAll("input");
  }

  #row({ name, created_at, x_vector_only }) {
    const radio = made("input", { type: "radio", name: "saved", value: name });
    const day = new Date(created_at * 1000).toLocaleDateString(undefined, { dateStyle: "medium" });
    const kind = x_vector_only ? "timbre only" : "with transcript";
    const facts = made("span", { className: "note", textContent: `${kind}, ${day}` });
    const label = made("label", {}, [
      radio,
      made("span", {}, [made("strong", { textContent: name }), facts]),
    ]);
    const remove = made("button", { type: "button", className: "plain", textContent: "Delete" });
    remove.setAttribute("aria-label", `Delete ${name}`);
    remove.onclick = () => this.#onDelete(name);
    return made("li", {}, [label, remove]);
  }
}

/** An element with properties and children. */
export function made(tag, properties = {}, children = []) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
